"""What code means, as text: the syntax tree without comments, formatting and positions.

    "x = sqrt( 2 )  # why"  ──>  Module(body=[Assign(targets=[Name(...)], value=Call(...))])

Python's own `ast.dump` changes from version to version; this one gives the same text on Python 3.11
to 3.13, so that a hash of it, made on one machine, can be compared on another.
"""

import ast
import re

#: In a call of `sizes(...)`: what a run with the profile `cpu` never reads.
OTHER_PROFILES = frozenset({"smoke", "gpu", "hour"})


def canonical(code: str, docstrings: bool = True) -> str:
    """The syntax tree of code as text; of a cell that does not parse, the code itself.

    A line of IPython (`%magic`, `!command`) counts as a string that stands in its place. In a call
    of something named `sizes`, what belongs to the profiles `smoke`, `gpu` and `hour` is left out.

    Args:
        code: a module, a cell or an indented piece of one.
        docstrings: False leaves those of functions, classes and the module out.

    >>> canonical("x = 1  # one")
    "Module(body=[Assign(targets=[Name(id='x',ctx=Store())],value=Constant(value=1))])"
    """
    for text in (code, _MAGIC.sub(_as_string, code)):
        try:
            return _dump(ast.parse(text), docstrings)
        except (SyntaxError, ValueError):
            continue
    return code


_MAGIC = re.compile(r"^([ \t]*)([%!].*)$", re.MULTILINE)


def _as_string(line: re.Match) -> str:
    without_comment = re.sub(r"\s+#\s.*$", "", line[2]).rstrip()
    return line[1] + ascii(without_comment)


def _dump(node: object, docstrings: bool) -> str:
    if isinstance(node, list):
        return f"[{','.join(_dump(item, docstrings) for item in node)}]"
    if not isinstance(node, ast.AST):
        return ascii(node)  # repr shows a character only where its Python knows it
    shown = []
    for name, value in ast.iter_fields(node):
        if name in ("kind", "type_comment"):
            continue
        if name == "body" and not docstrings and _has_docstring(node):
            value = value[1:]
        elif name == "keywords" and isinstance(node, ast.Call) and is_sizes(node.func):
            value = [keyword for keyword in value if keyword.arg not in OTHER_PROFILES]
        elif name == "values" and isinstance(node, ast.JoinedStr):
            value = _joined(value)
        if isinstance(node, ast.Constant) or (value is not None and value != []):
            shown.append(f"{name}={_dump(value, docstrings)}")
    return f"{type(node).__name__}({','.join(shown)})"


def _has_docstring(node: ast.AST) -> bool:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None


def is_sizes(function: ast.expr) -> bool:
    """Whether a call's function is named `sizes`, such as `lab.sizes`."""
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name == "sizes"


def _joined(parts: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string with neighbouring texts as one: versions cut them differently."""
    whole: list[ast.expr] = []
    for part in parts:
        last = whole[-1] if whole else None
        if isinstance(part, ast.Constant) and isinstance(last, ast.Constant):
            whole[-1] = ast.Constant(str(last.value) + str(part.value))
        elif not (isinstance(part, ast.Constant) and part.value == ""):
            whole.append(part)
    return whole
