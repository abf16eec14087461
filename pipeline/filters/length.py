"""How long a document is."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.documents import Document
from pipeline.filters.filter import BaseFilter


class Length(BaseFilter):
    """Documents of fewer or more bytes (UTF-8) than these."""

    reasons: ClassVar[Mapping[str, str]] = {
        "too_few_bytes": "fewer bytes of UTF-8 than minimum_bytes",
        "too_many_bytes": "more bytes of UTF-8 than maximum_bytes",
    }

    name: Literal["length"] = "length"
    minimum_bytes: Annotated[int, Field(ge=0)] = 0
    maximum_bytes: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _something_is_between(self) -> "Length":
        if self.maximum_bytes is not None and self.maximum_bytes < self.minimum_bytes:
            raise ValueError(
                f"maximum_bytes: expected at least minimum_bytes = {self.minimum_bytes}, "
                f"found {self.maximum_bytes}"
            )
        return self

    def reason(self, document: Document) -> str | None:
        text = document.text
        size = len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
        if size < self.minimum_bytes:
            return "too_few_bytes"
        if self.maximum_bytes is not None and size > self.maximum_bytes:
            return "too_many_bytes"
        return None
