"""docs/scaling.md, whose sections are written by scaling.py, steps_per_call.py and devices.py."""

from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"


def write_first(page: str):
    """Puts the page in the place of what stands before the sections."""
    sections = PAGE.read_text().split("\n## ")[1:]
    PAGE.write_text("\n## ".join(part.strip("\n") + "\n" for part in (page, *sections)))
    print(PAGE)


def write(title: str, body: str):
    """Puts the section of that title in the place of the one before it, or at the end."""
    parts = PAGE.read_text().split("\n## ")
    section = f"{title}\n\n{body.strip()}\n"
    same = [i for i, part in enumerate(parts) if part.startswith(f"{title}\n")]
    if same:
        parts[same[0]] = section
    else:
        parts.append(section)
    PAGE.write_text("\n## ".join(part.strip("\n") + "\n" for part in parts))
    print(PAGE)
