"""What goes wrong while HLO is read."""


class HloError(ValueError):
    """The text is not HLO that can be understood; the message names the line and the remedy."""
