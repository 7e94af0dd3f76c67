"""Docstrings on a narrower page than they were written for."""

import re
import textwrap

ITEM = r"(?:[-*]|\d+\.) "
"""How an item of a list begins."""

FIXED = r"^ *(?:\||#|```|rkd |--|pip |torchrun )"
"""How lines begin that no break may go through: of tables, and those to copy."""

HANGING = 4
"""Columns by which what a line goes on with is indented."""


def reflowed(text: str, width: int) -> str:
    """Text whose lines were broken for a wider page, broken anew at `width`: by paragraph and item of a list, formulas
    where they may be. Tables and commands, and text that fits, stay as they are."""
    if max(map(len, text.split("\n"))) <= width:
        return text
    return "\n\n".join(_reflowed(paragraph, width) for paragraph in text.split("\n\n"))


def _reflowed(paragraph: str, width: int) -> str:
    if re.search(FIXED, paragraph, re.MULTILINE):
        return paragraph
    if paragraph.startswith(" "):
        return "\n".join(broken(line, width) for line in paragraph.split("\n"))
    listed = re.search(rf"^{ITEM}", paragraph, re.MULTILINE)
    named = not listed and "\n " in paragraph  # `option: its meaning`, indented where it goes on
    start = rf"\n(?={ITEM})" if listed else r"\n(?=\S)" if named else r"(?!)"
    return "\n".join(_filled(item, width, HANGING if named else 0) for item in re.split(start, paragraph))


def _filled(item: str, width: int, hanging: int) -> str:
    mark = re.match(ITEM, item)
    indent = " " * (len(mark.group()) if mark else hanging)
    words = " ".join(item.split())
    return textwrap.fill(words, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def broken(line: str, width: int) -> str:
    """A line of a formula on several, if it is too long for one: where columns or equations stand apart, then before a
    plus or minus outside of all brackets, then between words, and within brackets last."""
    indent = min(len(line) - len(line.lstrip()), width // 3)
    lines, equations = [" " * indent], 0
    for gap, piece in re.findall(r"( *)((?:\S| (?! ))+)", line.strip()):
        column = len(lines[-1] + gap)
        is_equation = re.match(r"[^=]+ (?:=|<-) ", piece)
        if lines[-1].strip() and column + len(piece) > width and (column > width // 2 or (is_equation and equations)):
            column = (equations if is_equation else 0) or indent + HANGING
            lines.append("")
        equations = equations or (column if is_equation else 0)
        lines[-1] = lines[-1].ljust(column)
        further = column if column > indent and not is_equation else column + HANGING
        while len(lines[-1] + piece) > width and (place := _place(piece, width - len(lines[-1]))):
            lines[-1] += piece[:place]
            lines.append(" " * further)
            piece = piece[place + 1 :]
        lines[-1] += piece
    return "\n".join(lines)


def _place(text: str, room: int) -> int:
    """The space at which a text that is too long is best broken; 0: there is none."""

    def cost(space: re.Match[str]) -> tuple[object, ...]:
        before, after = text[: space.start()], text[space.end() :]
        depth = sum(before.count(letter) for letter in "([{") - sum(before.count(letter) for letter in ")]}")
        splits = before[-1] in "*=" or after.startswith("= ")
        return len(before) > room, splits, len(before) <= room // 3, depth, after[:2] not in ("+ ", "- "), -len(before)

    return min(re.finditer(" ", text), key=cost).start() if " " in text else 0
