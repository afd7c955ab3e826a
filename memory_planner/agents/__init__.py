"""Players of the memory games, and searches over orders to compare them with.

`alphazero` and `muzero` are `learner.Agent`s: they play any `games.game.Game` and learn from it;
`best_episodes` lets one play a given problem, `train` teaches one on random problems. `baselines`
and `local_search` look for an order by a score alone, which may be a game's or a real compiler's.
"""
