"""What a build tells its user when it cannot go on. The command prints the message and exits with code 2."""

from collections.abc import Sequence


class BuildError(Exception):
    """Something outside this program is not as it must be. The message names it, what was found, what was
    expected."""


class ConfigError(BuildError):
    """A configuration with problems: all of them."""

    def __init__(self, file: str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        count = "one problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"{file}: {count}\n" + "\n".join(f"  {problem}" for problem in self.problems))

    def __reduce__(self) -> tuple[type[BuildError], tuple[str]]:
        # As its message alone: an exception travels between processes by the arguments it was made with.
        return BuildError, (str(self),)


class InputError(BuildError):
    """An input is missing, torn or not of the format its name says. The message names it."""


class DamagedFile(BuildError):
    """A file of the build's own is not what was written. It was removed, so that it is made anew."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(where, message)
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.args[1]}"
