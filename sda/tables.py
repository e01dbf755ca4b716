"""Tables as text."""


def markdown(head: list[str], rows: list[list], numbers: bool = False) -> str:
    """A Markdown table; with `numbers`, all columns but the first are set flush right."""
    lines = [head, ["---", *["---:" if numbers else "---"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
