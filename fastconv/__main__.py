"""``python -m fastconv`` is the command ``fastconv``."""

from fastconv.cli import app

if __name__ == "__main__":
    app(prog_name="fastconv")
