"""Groups of commands that list what there is when no command is named."""

from typing import Any

from typer.core import TyperGroup


class ListsByDefault(TyperGroup):
    """A group that runs its command ``list`` when no other is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  # as typer has it
        """Find the command."""
        named = args and (args[0] == "--help" or not args[0].startswith("-"))
        return super().parse_args(ctx, args if named else ["list", *args])
