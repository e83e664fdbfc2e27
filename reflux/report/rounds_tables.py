"""The rounds of a run in the terminal: accuracy, and cost by round and by model."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from reflux.finetune.gates import failed_gates
from reflux.report.terminal import table_of


def rounds_tables(rounds: Sequence[Mapping[str, Any]]) -> tuple[Table, Table]:
    """Accuracy and cost of each round, as two tables 80 columns wide. Without true answers the
    first one holds what can be measured instead."""
    accuracy: list[Sequence[str]] = []
    cost: list[Sequence[str]] = []
    levels = len({row["level"] for row in rounds}) > 1 or rounds[0]["round"] == 0
    scored = any((row.get("student") or {}).get("accuracy") is not None for row in rounds)
    for row in rounds:
        scores = [row.get(system) for system in ("direct", "amplified", "student")]
        number = f"{row['round']} (level {row['level']})" if levels else str(row["round"])
        n = (row.get("student") or {}).get("n")
        if scored:
            accuracy.append((number, str(n or "–"), *map(accuracy_text, scores)))
        else:
            shares = [(score or {}).get("passed") for score in scores]
            cells = map(share_text, (*shares, row.get("agreement")))
            accuracy.append((number, str(n or "–"), *cells))
        calls = cached = "–"
        if amplified := row.get("amplified"):
            calls = f"{amplified['calls'] / amplified['n']:.2f}"
            cached = f"{amplified['cached'] / max(1, amplified['calls']):.0%}"
        failed = ", ".join(gate["name"] for gate in failed_gates(row["gates"]))
        cost.append(
            (str(row["round"]), row["agent"], calls, cached, str(row["trained_rows"]),
             f"{row['train_seconds']:.0f} s", f"{row['examples_per_second']:.1f}",
             "yes" if row["promoted"] else f"no: {failed}")
        )  # fmt: skip
    title = "Accuracy on held-out questions, with 95% intervals"
    heads = ("round", "n", "base", "amplified", "student")
    if not scored:
        title = "Held-out answers that pass the check, and student = amplified; 95% intervals"
        heads = (*heads, "student = amplified")
    numbers = ("round", "calls/question", "cached", "rows", "training", "rows/s")
    return (
        table_of(heads, accuracy, title=title, wraps=()),
        table_of(
            ("round", "agent", *numbers[1:], "promoted"),
            cost,
            title="Cost",
            wraps=("agent", "promoted"),
            right=numbers,
        ),
    )


def models_table(models: Sequence[Mapping[str, Any]]) -> Table:
    """What each model of a run was asked and cost, as `spending` gives it."""
    rows = [
        (
            each["model"],
            f"{each['calls']:,}",
            f"{each['cached'] / max(1, each['calls']):.0%}",
            f"{each['tokens']:,}",
            "–" if each["cost"] is None else f"{each['cost']:.4f}",
        )
        for each in models
    ]
    figures = ("calls", "cached", "tokens", "cost")
    return table_of(("model", *figures), rows, title="Models", wraps=("model",), right=figures)


def hard_lines(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many questions of each round were hard, and what became of the earlier hard ones."""
    lines: list[str] = []
    for row in rounds:
        amplify = row["amplify"]
        if "failed" not in amplify or row["round"] == 0:
            continue
        n = amplify["questions"]
        line = (
            f"Round {row['round']}: of {n} training questions {amplify['failed'] / n:.1%} failed "
            f"and {amplify['doubtful'] / n:.1%} were in doubt"
        )
        if amplify["asked_again"]:
            line += (
                f"; {amplify['asked_again']} had been hard in the round before, "
                f"{amplify['accepted_again']} of these are accepted now"
            )
        lines.append(line + ".")
    return lines


def overseer_lines(
    rounds: Sequence[Mapping[str, Any]], calls: Sequence[Mapping[str, int]]
) -> list[str]:
    """The learned overseer of each round, and how often the original one was asked."""
    lines: list[str] = []
    for each in (each for row in rounds for each in row.get("overseers", ())):
        line = f"Overseer {each['id']}: {each['rows']} rows of "
        line += f"{each['demonstrations']} demonstrations and trees"
        gates = [
            f"{gate['name']} {gate['value']:+.3f} (limit {gate['limit']:+.3f})"
            for gate in each["gates"]
        ]
        line += f"; {', '.join(gates)}" if gates else ""
        verdict = "divides from now on" if each["promoted"] else "not promoted"
        lines.append(f"{line}; {each.get('note', verdict)}.")
    counted = [f"{each['original']} times in round {each['round']}" for each in calls]
    if counted:
        learned = sum(each["learned"] for each in calls)
        lines.append(
            f"The original overseer was asked {', '.join(counted)}; the learned one {learned} "
            "times in all."
        )
    return lines


def retention_lines(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the last student keeps, and how well its confidence is calibrated by round."""
    lines = [row["retention"]["verdict"] for row in rounds[-1:] if row.get("retention")]
    errors: list[str] = []
    for row in rounds:
        student = row.get("student") or {}
        if calibration := student.get("calibration"):
            after = (student.get("scaling") or {}).get("ece")
            scaled = f" ({after[1]:.3f} scaled)" if after else ""
            errors.append(
                f"round {row['round']}: ECE {calibration['ece']:.3f}{scaled}, Brier "
                f"{calibration['brier']:.3f}"
            )
    lines += [line for row in rounds[-1:] if (line := behavior_line(row.get("canaries")))]
    return [*lines, *([f"How sure the students are: {'; '.join(errors)}."] if errors else [])]


def behavior_line(canaries: Mapping[str, Any] | None) -> str:
    """How often the last student shows each behavior, beside its base; empty where nothing was
    asked."""
    if not canaries:
        return ""
    rates = {(row["system"], row["behavior"]): row for row in canaries["rates"]}
    beside = [
        f"{name.replace('_', ' ')} {row['rate']:.2f} (base {rates['base', name]['rate']:.2f})"
        for (system, name), row in rates.items()
        if system == "student" and ("base", name) in rates
    ]
    certain = (
        f"{max(0.0, loss):.2f} against the {reference}"
        for reference, loss in canaries["certain_loss"].items()
    )
    return f"Behavior: {', '.join(beside)}; certain loss {', '.join(certain)}."


def parity_text(parity: Mapping[str, Any] | None) -> str:
    """`batched 12/12, llama.cpp 11/12 as in PEFT`, or a dash."""
    if not parity:
        return "–"
    agreeing = (
        f"{name} {counts['same'] + counts['near']}/{parity['n']}"
        for name, counts in parity["engines"].items()
    )
    return f"{', '.join(agreeing)} as in PEFT"


def accuracy_text(score: Mapping[str, Any] | None) -> str:
    """`0.985 [0.97, 0.99]`, or a dash."""
    if not score or score["accuracy"] is None:
        return "–"
    return share_text({"share": score["accuracy"], "ci95": score["ci95"]})


def share_text(share: Mapping[str, Any] | None) -> str:
    """`0.985 [0.97, 0.99]`, or a dash."""
    if not share:
        return "–"
    low, high = share["ci95"]
    return f"{share['share']:.3f} [{low:.2f}, {high:.2f}]"
