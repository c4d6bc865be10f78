"""What mkdocs does not do by itself: files outside of docs/ that a page links to become pages or files of the site.

README.md is the first page, a notebook a page with its outputs, another text file a page with its source. Links are rewritten
to where their targets lie in the site; one whose target is nowhere stays as it is, and `mkdocs build --strict` names it.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)((?:#[^)\s]*)?\))")
FOLDER = re.compile(r"\[([^\]]*)\]\((?!https?:)([^)#\s]+/)\)")
AS_THEY_ARE = {".png", ".svg", ".html", ".jsonl", ".json"}
LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".cff": "yaml"}


def page_of(path: str) -> str:
    """Where a file of the repository (a path from its root) lies in the site's sources."""
    if path == "README.md":
        return "index.md"
    inside = path.removeprefix("docs/")
    suffix = posixpath.splitext(inside)[1]
    if suffix == ".ipynb":
        return inside.removesuffix(".ipynb") + ".md"
    return inside if inside != path or suffix in AS_THEY_ARE | {".md"} else f"{inside}.md"


def file_of(page: str) -> str:
    """The inverse, of a page: the file of the repository that it is made from."""
    if page == "index.md":
        return "README.md"
    for candidate in (f"docs/{page}", page, page.removesuffix(".md") + ".ipynb", page.removesuffix(".md")):
        if (ROOT / candidate).is_file():
            return candidate
    return f"docs/{page}"


def targets(text: str, path: str) -> list[str]:
    """Files of the repository that the Markdown of `path` links to."""
    found = (posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for _, link, _ in LINK.findall(text))
    return [target for target in found if (ROOT / target).is_file()]


def from_notebook(text: str) -> str:
    """A notebook as Markdown: text, code, and what the code printed, showed and drew."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        outputs = cell.get("outputs", [])
        if streams := "".join("".join(output.get("text", [])) for output in outputs).rstrip():
            parts.append(f"```text\n{streams}\n```")
        for output in outputs:
            data = {kind: "".join(value) for kind, value in output.get("data", {}).items()}
            if "image/png" in data:
                parts.append(f'<img alt="" src="data:image/png;base64,{data["image/png"].strip()}">')
            elif "text/html" in data:
                parts.append(data["text/html"])
            elif "text/plain" in data:
                parts.append(f"```text\n{data['text/plain']}\n```")
    return "\n\n".join(parts)


def content_of(path: str) -> str:
    """The Markdown of a page that is made from a file outside of docs/."""
    text, suffix = (ROOT / path).read_text(encoding="utf-8"), posixpath.splitext(path)[1]
    if suffix == ".ipynb":
        return from_notebook(text)
    return text if suffix == ".md" else f"# {path}\n\n````{LANGUAGES.get(suffix, 'text')}\n{text}\n````\n"


def on_files(files, config):
    """Add README, and whatever a page links to, and what that links to."""
    todo = ["README.md"] + [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    seen = set(todo)
    while todo:
        path = todo.pop()
        if not path.startswith("docs/"):
            whole = posixpath.splitext(path)[1] in AS_THEY_ARE
            source = {"abs_src_path": str(ROOT / path)} if whole else {"content": content_of(path)}
            files.append(File.generated(config, page_of(path), **source))
        if path.endswith((".md", ".ipynb")):
            text = content_of(path)
            todo += [target for target in dict.fromkeys(targets(text, path)) if target not in seen]
            seen.update(todo)
    return files


def on_page_markdown(markdown, page, config, files):
    """Links, as they are in the repository, to where their targets lie in the site."""
    path = file_of(page.file.src_uri)

    def moved(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))
        if not (ROOT / target).is_file():
            return match[0]
        place = posixpath.relpath(page_of(target), posixpath.dirname(page.file.src_uri) or ".")
        return f"{match[1]}{place}{match[3]}"

    return LINK.sub(moved, FOLDER.sub(r"\1", markdown))  # a folder of the repository has no page
