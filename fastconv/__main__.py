"""``python -m fastconv`` is the command ``fastconv``."""

from fastconv.cli import app

app(prog_name="fastconv")
