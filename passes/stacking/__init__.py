"""Finding repeated layers in a flat program, and rolling them into a loop."""
