"""The settings page is what the settings classes say."""

import importlib.util
from pathlib import Path


def test_the_page_is_up_to_date():
    docs = Path(__file__).parents[2] / "docs"
    spec = importlib.util.spec_from_file_location("make_settings", docs / "make_settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (docs / "settings.md").read_text() == module.render() + "\n", "run: python docs/make_settings.py"
