"""Episodes as data, and a book of the best ones seen.

The games are deterministic, so an episode is its actions, and the best one ever seen is what a
search is for, whatever its network thinks of later ones.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Episode:
    """A game played to its end.

    Attributes:
      actions: in the order they were taken.
      return_ns: sum of the rewards.
    """

    actions: tuple[int, ...]
    return_ns: int


class BestEpisodes:
    """The best distinct episodes of those added.

    Args:
      keep: how many.
    """

    def __init__(self, keep: int):
        self._keep = keep
        self._episodes: dict[tuple[int, ...], Episode] = {}

    def add(self, episode: Episode) -> None:
        """Keeps the episode if it is new and among the best; of equal returns, the earlier."""
        if episode.actions in self._episodes:
            return
        self._episodes[episode.actions] = episode
        if len(self._episodes) > 2 * self._keep:
            self._episodes = {e.actions: e for e in self.ranked()}

    def ranked(self) -> tuple[Episode, ...]:
        """Best first, at most `keep`; equal returns in the order they were added."""
        ordered = sorted(self._episodes.values(), key=lambda e: -e.return_ns)
        return tuple(ordered[: self._keep])
