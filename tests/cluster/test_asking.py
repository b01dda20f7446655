"""Asking and acting are two things: what is called like a question only answers it."""

import ast
import re
from pathlib import Path

import contrails

_QUESTION = re.compile(r"_?(is|has|may|can|decide|goes|makes|keeps)_\w+|\w*_state|standing")
_ACT = re.compile(
    r"_?(write|record|submit|append|finish|say|tell|requeue|reconcile|cancel|delete)(_\w+)?"
    r"|unlink|rename|mkdir|touch|signal|kill|send_signal|create_exclusive|note_\w+"
)


def test_a_question_writes_submits_and_signals_nothing() -> None:
    package = Path(contrails.__file__).parent
    questions = [
        (path.relative_to(package), function)
        for folder in ("cluster", "submitit_pbs")
        for path in sorted((package / folder).rglob("*.py"))
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef) and _QUESTION.fullmatch(function.name)
    ]
    assert {"is_wanted", "may_retry", "fold_state", "decide_memory_mb"} <= {function.name for _, function in questions}
    found = [
        f"{path}: {function.name} calls {name}"
        for path, function in questions
        for name in map(_called, ast.walk(function))
        if _ACT.fullmatch(name)
    ]
    assert found == []


def _called(node: ast.AST) -> str:
    """Return the last name of what a node calls; empty where it calls nothing."""
    return ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
