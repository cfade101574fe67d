"""`python -m suture` is the `suture` command."""

from __future__ import annotations

from suture.cli.main import main

if __name__ == "__main__":
    main()
