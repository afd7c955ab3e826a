"""What a pass raises."""


class PassError(ValueError):
    """A pass cannot do what was asked of it, or broke the program.

    Attributes:
      pass_name: of the pass; empty until the pipeline fills it in.
    """

    def __init__(self, message: str, pass_name: str = "") -> None:
        super().__init__(f"pass {pass_name!r}: {message}" if pass_name else message)
        self.pass_name = pass_name
        self.message = message
