"""Models as graphs: the logits are those of operators one by one, and the batch may stay open, as in MINDIR files.

What looks at the batch while a graph is compiled must also do without.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from focal_twins.models import create_model
from tests.models.test_training_options import FAMILIES
from tests.reference import images


@pytest.mark.parametrize("family", FAMILIES)
def test_the_batch_may_stay_open(family, tmp_path):
    model = create_model(family, **FAMILIES[family]).set_train(False)
    path = tmp_path / "x.mindir"
    ms.export(model, Tensor(shape=[None, 3, 32, 32], dtype=ms.float32), file_name=str(path), file_format="MINDIR")
    network = nn.GraphCell(ms.load(str(path)))
    for batch in (1, 3):
        x = Tensor(images((batch, 3, 32, 32)))
        np.testing.assert_allclose(network(x).asnumpy(), model(x).asnumpy(), atol=1e-6)
