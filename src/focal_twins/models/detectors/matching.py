"""Matches objects one to one with predictions at the least total cost, in a graph."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from focal_twins.models.gathers import gather_rows

FAR = 1e30  # a distance that no path has
MOST_COST = 1e6  # what takes the place of costs that are not finite, after an overflow: the search has to end


class LeastCostMatching(nn.Cell):
    """Matches the rows of cost matrices one to one with columns, of which there are at least as many.

    It is the Hungarian method with shortest augmenting paths (Jonker and Volgenant 1987), exact as
    scipy.optimize.linear_sum_assignment is; sums are float32, so that matchings whose costs differ by less than that
    resolves count as equal. All matrices go through it in step: rows first take the column that costs least; each row
    that lost it to another then finds the cheapest chain of rows that move on to other columns. Loops end when the last
    matrix is done, and take time for conflicts, not for rows.

    The loops are control flow of the graph, the same on CPU and Ascend. (Tried: MindSpore's PyFunc and Custom, which
    call scipy, run on CPU alone. Two graphs, with scipy between, run the network twice. An auction of a fixed number of
    rounds is exact only with as many rounds as the closest matchings need, and compiles slowly.)
    """

    def __init__(self):
        super().__init__()
        # ArgMinWithValue's numbers are int64.
        self.argmin, self.argmax, self.least = ops.Argmin(1), ops.Argmax(1), ops.ReduceMin()

    def construct(self, costs, is_row):
        """Return the row [M, N] int32 that each column is matched with, -1 for none. No gradient flows through it.

        Args:
            costs: [M, G, N] float32, G <= N. is_row: [M, G] bool, False for padding.
        """
        count, rows, columns = costs.shape
        costs = ops.stop_gradient(costs)
        costs = ops.select(ops.isfinite(costs), costs, ops.full_like(costs, MOST_COST))
        row_numbers = Tensor(np.arange(rows, dtype=np.int32).reshape(1, -1))
        column_numbers = Tensor(np.arange(columns, dtype=np.int32).reshape(1, -1))
        no_column = Tensor(np.full((count, rows), -1, np.int32))
        no_row = Tensor(np.full((count, columns), -1, np.int32))
        far = Tensor(np.full((count, columns), FAR, np.float32))

        # Every row wants its cheapest column, and the first of those that want a column has it.
        wanted, row_prices = ops.Argmin(2)(costs), self.least(costs, 2)  # [M, G]
        wants = wanted.reshape((count, rows, 1)) == column_numbers.reshape((1, 1, -1))
        wants = ops.logical_and(wants, is_row.reshape((count, rows, 1)))  # [M, G, N]
        first_row = self.argmax(wants.astype(ms.float32))  # [M, N]
        row_of = ops.select(wants.any(1), first_row, no_row)
        has_it = ops.logical_and(is_row, ops.gather_elements(row_of, 1, wanted) == row_numbers)
        column_of = ops.select(has_it, wanted, no_column)
        column_prices = ops.zeros((count, columns), ms.float32)

        is_left = ops.logical_and(is_row, column_of <= -1)
        while is_left.any():
            active = is_left.any(1)  # [M]
            start = self.argmax(is_left.astype(ms.float32))  # the first row that is left
            # Dijkstra's search for the nearest free column.
            row, way = start, ops.zeros((count,), ms.float32)
            distances, came_from = far, ops.zeros((count, columns), ms.int32)
            is_seen = ops.zeros((count, columns), ms.bool_)
            end = ops.select(active, ops.full_like(start, -1), ops.zeros_like(start))
            while (end <= -1).any():
                searching = (end <= -1).reshape((-1, 1))
                costs_of_row = gather_rows(costs, row.reshape((-1, 1))).reshape((count, columns))
                reached = way.reshape((-1, 1)) + costs_of_row - column_prices
                reached = reached - ops.gather_elements(row_prices, 1, row.reshape((-1, 1)))
                nearer = ops.logical_and(ops.logical_and(searching, ops.logical_not(is_seen)), reached < distances)
                distances = ops.select(nearer, reached, distances)
                came_from = ops.select(nearer, row.reshape((-1, 1)) + ops.zeros_like(came_from), came_from)
                unseen = ops.select(is_seen, far, distances)
                column, nearest = self.argmin(unseen), self.least(unseen, 1)
                is_column = column.reshape((-1, 1)) == column_numbers
                is_seen = ops.logical_or(is_seen, ops.logical_and(is_column, searching))
                owner = ops.gather_elements(row_of, 1, column.reshape((-1, 1))).reshape(-1)
                is_searching = end <= -1
                way = ops.select(is_searching, nearest, way)
                row = ops.select(ops.logical_and(is_searching, owner >= 0), owner, row)
                end = ops.select(ops.logical_and(is_searching, owner <= -1), column, end)

            # Prices, by which every matched pair stays the cheapest that its row can have.
            seen = ops.logical_and(is_seen, active.reshape((-1, 1)))
            excess = ops.select(seen, way.reshape((-1, 1)) - distances, ops.zeros_like(distances))
            column_prices = column_prices - excess
            of_rows = ops.gather_elements(excess, 1, ops.maximum(column_of, 0))
            of_rows = ops.select(column_of >= 0, of_rows, ops.zeros_like(of_rows))
            is_start = ops.logical_and(start.reshape((-1, 1)) == row_numbers, active.reshape((-1, 1)))
            row_prices = row_prices + of_rows + is_start.astype(ms.float32) * way.reshape((-1, 1))

            # Back along the chain, each row takes the column that the search came to from it.
            moving, column = active, end
            while moving.any():
                row = ops.gather_elements(came_from, 1, column.reshape((-1, 1))).reshape(-1)
                before = ops.gather_elements(column_of, 1, row.reshape((-1, 1))).reshape(-1)
                is_moved = moving.reshape((-1, 1))
                here = ops.logical_and(column.reshape((-1, 1)) == column_numbers, is_moved)
                row_of = ops.select(here, row.reshape((-1, 1)) + ops.zeros_like(row_of), row_of)
                mine = ops.logical_and(row.reshape((-1, 1)) == row_numbers, is_moved)
                column_of = ops.select(mine, column.reshape((-1, 1)) + ops.zeros_like(column_of), column_of)
                moving = ops.logical_and(moving, row != start)
                column = ops.select(moving, before, column)
            is_left = ops.logical_and(is_row, column_of <= -1)
        return row_of
