"""Whether a text is a question or one of the texts that are searched: some encoders read the two differently.

Clients say it as `input_type`, under the words that Cohere's, Voyage's and NVIDIA's use.
"""

from __future__ import annotations

from typing import Final

from octavo.errors import Invalid
from octavo.serving.inference import Parameters
from octavo.serving.model_config import CONFIG_NAME, ModelConfig

PARAMETER: Final = "input_type"
DEFAULT: Final = "default_input_type"
QUERY: Final = "query"
DOCUMENT: Final = "document"

_MEANT = {
    "query": QUERY,
    "search_query": QUERY,
    "document": DOCUMENT,
    "search_document": DOCUMENT,
    "passage": DOCUMENT,
}


def input_type(parameters: Parameters, default: str, model: str) -> str:
    """`query` or `document`: what a request says, else the default.

    Args:
        parameters: of the request.
        default: `query` or `document`.
        model: for the message.

    Raises:
        Invalid: it says something else.
    """
    given = parameters.get(PARAMETER, "")
    if given == "":
        return default
    meant = _MEANT.get(given) if isinstance(given, str) else None
    if meant is None:
        raise Invalid(
            f"unknown input_type {str(given)[:60]!r} of model {model!r}", PARAMETER, "Send query or document."
        )
    return meant


def default_input_type(config: ModelConfig) -> str:
    """What a request without `input_type` gets: `default_input_type` of the parameters, `document` without it.

    Raises:
        Invalid: it is neither `query` nor `document`.
    """
    given = config.parameters.get(DEFAULT, DOCUMENT)
    if given not in (QUERY, DOCUMENT):
        where = f"{config.name}/{CONFIG_NAME}"
        raise Invalid(f"parameter {DEFAULT!r} is {given[:60]!r}", where, "Write query or document.")
    return given
