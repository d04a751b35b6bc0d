"""Text the way the Read tool shows a file: line number in 5 columns, an arrow, the line.

An agent reads most of its code in this form, so the tokenizer sees some of its training text so.
"""

from collections.abc import Iterable, Iterator

from nanocode_core.tokenizer.documents import Document


def numbered(text: str, first: int = 1) -> str:
    """The lines of a text, each behind its number, counted from `first`."""
    return "\n".join(f"{number:>5}→{line}" for number, line in enumerate(text.split("\n"), first))


def training_texts(
    documents: Iterable[Document], characters: int, listed_share: float, listed_content: str
) -> Iterator[str]:
    """Texts to train a tokenizer on: at most `characters`, the last document cut to fit.

    Documents of the kind `listed_content` come out as `numbered` as long as they make up no more
    than `listed_share` of the text so far. Characters count without the line numbers.
    """
    seen = listed = 0
    for document in documents:
        if seen >= characters:
            return
        text = document.text[: characters - seen]
        seen += len(text)
        if document.content == listed_content and listed + len(text) <= listed_share * seen:
            listed += len(text)
            yield numbered(text)
        else:
            yield text
