"""What a filter is: None keeps a document, a reason drops it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from pipeline.documents import Document


class BaseFilter(BaseModel, ABC):
    """A filter with its parameters, as a configuration gives them. Shares are exact fractions, and a document at a
    limit is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reasons: ClassVar[Mapping[str, str]]
    """Every reason it gives, and what that means, for people."""
    version: ClassVar[int] = 1
    """Goes up when the same parameters begin to drop other documents, so that no sealed result is taken for a new
    one."""

    sources: tuple[str, ...] | None = None
    """Names of the sources it looks at; all of them if left out."""

    @abstractmethod
    def reason(self, document: Document) -> str | None:
        """Why it drops the document, None to keep it. Raises nothing, whatever the text."""

    @property
    def libraries(self) -> dict[str, str]:
        """The versions of libraries that its decisions depend on."""
        return {}

    def identity(self) -> dict[str, Any]:
        """All that its decisions about a document depend on, of types that JSON has."""
        parameters = self.model_dump(mode="json", exclude={"sources"})
        return {**parameters, "version": self.version, "libraries": self.libraries}
