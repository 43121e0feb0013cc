"""The HTML report: one file that needs no network."""

import importlib.util

from tracetool.errors import SettingError


def check_installed() -> None:
    """Look for what a page needs, without importing it.

    Raises:
        SettingError: it is not installed.
    """
    for package in ("jinja2", "plotly"):
        if importlib.util.find_spec(package) is None:
            raise SettingError(f"a report needs {package}, which is not installed: pip install 'tracetool[report]'")
