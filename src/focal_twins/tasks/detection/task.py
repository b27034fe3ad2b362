"""Defines the task of finding objects: a box, a class and a score for each and, by some networks, a mask."""

from dataclasses import replace

from focal_twins.config.detection import canvases_of
from focal_twins.data.coco import CocoImages
from focal_twins.data.dataset import DataError
from focal_twins.errors import UserError
from focal_twins.files.names import only_in
from focal_twins.models.detectors.mask_head import MASK_SIDE
from focal_twins.tasks.detection import run_sections
from focal_twins.tasks.detection.evaluator import DetectionEvaluator
from focal_twins.tasks.detection.export_difference import difference_of_rows
from focal_twins.tasks.detection.export_form import CANDIDATES, DETECTIONS, ExportForm
from focal_twins.tasks.detection.figures import BOX_FIGURES, MASK_FIGURES
from focal_twins.tasks.detection.loss import DetectionLosses
from focal_twins.tasks.detection.networks import CanvasDetector, in_precision, models_by_canvas
from focal_twins.tasks.detection.predictor import ObjectPredictor
from focal_twins.tasks.detection.preparation import ImagePreparation, selection_rule
from focal_twins.tasks.detection.samples import DetectionEvalSamples, DetectionTrainSamples
from focal_twins.tasks.task import Signature, Task, TensorSpec

SHOWN_FIGURES = 6  # of each kind, in lists of epochs; files have all


class Detection(Task):
    """Finds objects; the AP of their boxes chooses the best checkpoint."""

    name = "detection"
    outputs = (CANDIDATES, DETECTIONS)
    figures = BOX_FIGURES + MASK_FIGURES

    def check(self):
        """Do nothing: what the configuration asks for was checked when it was loaded."""

    def open(self, split, classes=None):
        with_masks = bool(self.config.model.resolved().get("masks"))
        return CocoImages.of(self.config, split, classes, with_masks)

    def check_data(self, train, val):
        """Do nothing: both have the classes of the configuration or, where it names none, those of training."""

    def losses(self, network, model, data, dist):
        models = models_by_canvas(model, canvases_of(self.config))
        level = self.config.precision(dist.device_target)
        return DetectionLosses(in_precision(models, model, network, level), models)

    def noise(self, model, generator, batch):
        return (model.draw_drop_path(generator, len(batch[0])),)

    def train_samples(self, model, data, unreadable, epochs):
        config = self.config
        return DetectionTrainSamples(
            data,
            canvases_of(config),
            config.augment,
            config.data.mean,
            config.data.std,
            config.runtime.seed,
            unreadable,
            model.target_maker(),
        )

    def eval_samples(self, model, data, unreadable):
        config = self.config
        return DetectionEvalSamples(
            data,
            canvases_of(config),
            config.eval.short_side,
            config.eval.long_side,
            config.data.mean,
            config.data.std,
            unreadable,
        )

    def evaluator(self, model, data, dist, classes=None, label="the model"):
        if classes is not None and classes != data.classes:
            raise DataError(
                f"COCO JSON {data.file.path}: its classes are not those of {label}, "
                f"{only_in(data.classes, classes, 'the data', 'the model')}; set data.classes to the model's, in order"
            )
        rule = selection_rule(self.config, model)
        level = self.config.precision(dist.device_target)
        finder = CanvasDetector(model, canvases_of(self.config), level, rule)
        return DetectionEvaluator(data, self.config, dist, finder.with_network, rule, model.has_masks)

    def exported(self, model, output):
        return ExportForm(model, output, selection_rule(self.config, model))

    def for_one_size(self, config):
        """Evaluate on the canvas of the network's own size alone, into which larger images are made to fit."""
        if config.data.canvases is not None and len(config.data.canvases) > 1:
            print("an exported file is evaluated on its one canvas, not on data.canvases", flush=True)
        return replace(config, data=config.data.model_copy(update={"canvases": None}))

    def difference(self, model, output, pairs):
        return difference_of_rows(pairs, output, selection_rule(self.config, model))

    def signature(self, model, batch_size, output):
        if batch_size is None:
            raise UserError("--dynamic-batch: a detector is exported for one number of images; give --batch_size")
        images = TensorSpec("images", (batch_size, model.in_chans, *model.img_size))
        rule = selection_rule(self.config, model)
        if output == CANDIDATES:
            return Signature((images,), (TensorSpec(output, (batch_size, model.candidate_count, rule.columns)),))
        detections = TensorSpec(output, (batch_size, rule.max_detections, 6))
        masks = TensorSpec("masks", (batch_size, rule.max_detections, MASK_SIDE, MASK_SIDE))
        return Signature((images,), (detections, masks) if model.has_masks else (detections,))

    def sample_inputs(self, model, count):
        """Return the first readable validation images on the network's own canvas; without any, noise."""
        preparation = ImagePreparation.of(self.config, model).on_canvas(model.img_size)
        return self.images_or_noise(
            lambda images: (preparation.resized(p)[0] for p in images.readable_pixels(model.in_chans)),
            lambda resized: preparation.inputs(resized, model.img_size)[0],
            (model.in_chans, *model.img_size),
            count,
        )

    def answer(self, model):
        """Return what finds objects in images on canvases, see finding.Finder."""
        rule = selection_rule(self.config, model)
        return CanvasDetector(model, canvases_of(self.config), "O0", rule).with_network(model)

    def preprocessing(self, model, output):
        preparation = ImagePreparation.of(self.config, model)
        return (preparation if output is None else preparation.on_canvas(model.img_size, output)).to_dict()

    @classmethod
    def predictor(cls, answer, preprocessing, batch_size, classes, options):
        return ObjectPredictor(answer, ImagePreparation.from_dict(preprocessing), batch_size, classes, options)

    @classmethod
    def shown_figures(cls, config):
        """Return the AP figures, those of masks where the network has them."""
        masks = MASK_FIGURES[:SHOWN_FIGURES] if (config.get("model") or {}).get("masks") else ()
        return BOX_FIGURES[:SHOWN_FIGURES] + masks

    @classmethod
    def read_evaluation(cls, path, content):
        return run_sections.read_evaluation(path, content)

    @classmethod
    def sections(cls, evaluation, config, data, roots):
        return run_sections.sections(evaluation, config, data, roots)
