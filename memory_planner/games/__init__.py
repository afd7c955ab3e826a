"""Games in which moves place buffers in fast memory: one rule set, two kinds of moves.

`mapping.MappingGame` decides Copy / NoCopy / Drop for each use; `order.OrderGame` chooses the next
buffer for the compiler's allocator, and how early its copies start. Both are `game.Game`s.
"""
