"""The form of an endpoint: its name and variants; what is wrong is told where it stands."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from nicegui import ui

from octavo.access import Principal, require
from octavo.errors import OctavoError
from octavo.serving.endpoint import MAX_VARIANTS, VARIANT_NAME, Endpoint, Variant, parse_endpoint
from octavo.serving.model_config import check_name, check_version
from octavo.serving.pages.console import alert, answer_of

if TYPE_CHECKING:
    from octavo.serving.service import Serving


class EndpointForm:
    """A dialog that makes an endpoint or changes one.

    Args:
        service: of the server.
        principal: who asks.
        models: those they may send traffic to.
        known: the endpoint to change; None for a new one.
        held: a deployment keeps it, and will write over what is changed here.
    """

    def __init__(
        self, service: Serving, principal: Principal, models: list[str], known: Endpoint | None, held: bool
    ) -> None:
        self._service, self._principal, self._models, self._known = service, principal, models, known
        self._rows: list[_Row] = []
        with ui.dialog().props("persistent") as self._dialog, ui.card().classes("o-dialog"):
            title = f"Change {known.name}" if known else "New endpoint"
            ui.label(title).classes("o-dialog-title")
            if held:
                ui.label("A roll-out keeps this endpoint: its next step writes over what you change here.").classes(
                    "o-warn o-note"
                )
            self._name = ui.input("Name", value=known.name if known else "", validation=_fit_name).props("dense")
            self._name.classes("o-wide").set_visibility(known is None)
            self._list = ui.element("div").classes("o-stack o-wide")
            self._more = ui.button("Add a variant", icon="add", on_click=lambda: self._add(None))
            self._more.props("flat dense no-caps")
            self._problem = ui.html(sanitize=False).classes("o-wide")
            with ui.element("div").classes("o-row o-wide o-end"):
                ui.button("Cancel", on_click=lambda: self._dialog.submit(False)).props("flat no-caps")
                ui.button("Save", on_click=self._save).props("unelevated no-caps")
        for variant in known.variants if known else (None,):
            self._add(variant)

    async def ask(self, revision: int) -> bool:
        """Show it until it is saved or left; whether it was saved.

        Args:
            revision: the one that was read, 0 for a new endpoint; a change of somebody else's is not written over.
        """
        self._revision = revision
        return await answer_of(self._dialog)

    def _add(self, variant: Variant | None) -> None:
        with self._list:
            self._rows.append(_Row(self._models, variant, self._drop))
        self._more.set_enabled(len(self._rows) < MAX_VARIANTS)

    def _drop(self, row: _Row) -> None:
        self._rows.remove(row)
        row.line.delete()
        self._more.set_enabled(True)

    async def _save(self) -> None:
        fields = [self._name, *(field for row in self._rows for field in row.checked)]
        fit = [field.validate() for field in fields]  # all of them, so that each tells what is wrong with it
        if not all(fit):
            self._problem.set_content("")
            return
        try:
            name = self._name.value.strip()
            require(self._principal, "edit", f"models/{name}")
            wanted = parse_endpoint({"name": name, "variants": [row.given() for row in self._rows]})
            for variant in wanted.variants:
                require(self._principal, "infer", f"models/{variant.model}")
            await self._service.declare_endpoint(wanted, self._revision)
        except OctavoError as error:
            self._problem.set_content(alert(error))
            return
        ui.notify(f"{name} counts from now on", type="positive")
        self._dialog.submit(True)


class _Row:
    """The fields of one variant."""

    def __init__(self, models: list[str], variant: Variant | None, drop: Any) -> None:
        self.line = ui.element("div").classes("o-fields o-wide")
        known = variant.model if variant else ""
        choices = models if not known or known in models else [*models, known]
        with self.line:
            self._name = ui.input("Variant", value=variant.name if variant else "", validation=_fit_variant)
            self._model = ui.select(
                choices, label="Model", value=known or None, with_input=True, validation=_chosen
            ).classes("o-field-wide")
            self._version = ui.input("Version", value=variant.version if variant else "", validation=_fit_version)
            self._version.props('placeholder="default"')
            self._weight = ui.number("Share", value=variant.weight if variant else 1, min=0, validation=_fit_share)
            self._shadow = ui.checkbox("Shadow", value=bool(variant and variant.shadow))
            self._shadow.tooltip("Gets copies of this share of the requests (0 to 1), and answers nobody")
            ui.button(icon="close", on_click=lambda: drop(self)).props('flat round dense aria-label="Take out"')
        self.checked: tuple[Any, ...] = (self._name, self._model, self._version, self._weight)
        for field in self.checked:
            field.props("dense")

    def given(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self._name.value.strip(),
            "model": self._model.value,
            "version": (self._version.value or "").strip(),
            "weight": self._weight.value,
            "shadow": self._shadow.value,
        }


def _fit_name(value: str) -> str | None:
    try:
        check_name((value or "").strip())
    except OctavoError as error:
        return error.what
    return None


def _fit_version(value: str | None) -> str | None:
    try:
        check_version((value or "").strip())
    except OctavoError as error:
        return error.what
    return None


def _fit_variant(value: str | None) -> str | None:
    return None if re.match(VARIANT_NAME, (value or "").strip()) else "Letters, digits, dashes"


def _chosen(value: str | None) -> str | None:
    return None if value else "Choose one"


def _fit_share(value: float | None) -> str | None:
    return None if value is not None and 0 <= value <= 1e6 else "0 or more"
