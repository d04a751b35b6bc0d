"""Fixed texts to compare tokenizers on, the same for every corpus."""

from nanocode_core.tokenizer.listing import numbered

PROSE = """\
The harbour town wakes before the sun does. By five o'clock the first boats have come in, and the
people who buy fish for the restaurants stand on the quay with their collars up, arguing about the
price of mackerel. Nobody is in a hurry to settle. It has been done this way for two hundred years,
and the ones who tried to do it over the telephone found, after a season or so, that they had been
sold what was left.

Economists have an explanation for this. When quality is hard to describe and easy to see, a market
tends to stay in one place: seller and buyer meet over the goods, and trust is built up one morning
at a time. In 1996, about 38% of the catch changed hands on the quay; by 2021 the share had risen to
57%, although every boat by then carried a tracking device and could be reached at sea.
"""

CODE = '''\
"""Routes on a grid, found with A*."""

import heapq
from dataclasses import dataclass, field


@dataclass(order=True)
class Node:
    priority: float
    position: tuple[int, int] = field(compare=False)


class Grid:
    def __init__(self, rows: list[str]):
        self.rows = rows
        self.height, self.width = len(rows), len(rows[0])

    def neighbours(self, x: int, y: int):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            if 0 <= x + dx < self.width and 0 <= y + dy < self.height and self.rows[y + dy][x + dx] != "#":
                yield x + dx, y + dy

    def route(self, start, goal):
        """The shortest route as a list of positions, or None."""
        queue, cost, came_from = [Node(0, start)], {start: 0}, {start: None}
        while queue:
            current = heapq.heappop(queue).position
            if current == goal:
                path = []
                while current is not None:
                    path.append(current)
                    current = came_from[current]
                return path[::-1]
            for step in self.neighbours(*current):
                new_cost = cost[current] + 1
                if step not in cost or new_cost < cost[step]:
                    cost[step] = new_cost
                    came_from[step] = current
                    distance = abs(goal[0] - step[0]) + abs(goal[1] - step[1])
                    heapq.heappush(queue, Node(new_cost + distance, step))
        return None


if __name__ == "__main__":
    print(len(Grid(["....", ".##.", "...."]).route((0, 0), (3, 2)) or []))
'''

TOOL_RESULT = numbered(CODE, first=97)

SAMPLES = {"prose sample": PROSE, "code sample": CODE, "tool result sample": TOOL_RESULT}
