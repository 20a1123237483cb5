"""What renders the rows of a recipe: its objective, with users' failures named, and raw text beside chats in a mix."""

from dataclasses import dataclass

from tunesmith.config.extensions import UsersCodeError, failures_named
from tunesmith.config.recipe import Recipe
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer, Rendering
from tunesmith.data.template import UnusableError
from tunesmith.data.tokenize import Renders


@dataclass(frozen=True)
class _UsersObjective:
    """Names the row at which users' code fails; in a worker process too, whose traceback does not come back."""

    objective: Renders
    code: dict[str, str]

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        try:
            with failures_named(self.code, UnusableError):
                return self.objective.render(renderer, example)
        except UsersCodeError as error:
            raise UsersCodeError(f"{example.source}: {error}") from error.__cause__


def renders(recipe: Recipe) -> Renders:
    """The recipe's objective, as far as it renders rows. In a mix, it also renders raw text beside chats."""
    own = _UsersObjective(recipe.objective, recipe.extensions) if recipe.extensions else recipe.objective
    return ChatsOrText(own) if recipe.data.mix and takes_text(recipe) else own


def takes_text(recipe: Recipe) -> bool:
    """Whether raw text can be mixed with the rows of a recipe.

    Args:
        recipe: whose objective renders the rows.
    """
    return not recipe.objective.formats and recipe.objective.bases == ("decoder",)


@dataclass(frozen=True)
class ChatsOrText:
    """Renders rows of a mix: raw text with loss on all tokens, chats as the objective does."""

    objective: Renders

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        if example.messages is None:
            return renderer.render(example, learn="all")
        return self.objective.render(renderer, example)
