"""One search for attacks as a plan: the systems, how each is asked, and what is written of it."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reflux.agents.errors import UsageError
from reflux.agents.files import read_text, write_whole
from reflux.agents.policy.policy import Policy
from reflux.agents.tools.protocol import Grants
from reflux.agents.types import ChatClient
from reflux.ask_context import open_tools
from reflux.cli.ask import batch_config
from reflux.cli.contract import limits_of
from reflux.cli.evaluation.inputs import overseer_of
from reflux.cli.evaluation.systems import SystemSpecs, is_graph
from reflux.cli.progress import ProgressView
from reflux.finetune.configs.run import read_yaml
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.weighing import Weighing
from reflux.graphs.ask import Amplified
from reflux.graphs.attacks.agentdojo import KnowingClient, dojo_context
from reflux.graphs.attacks.cases import Case
from reflux.graphs.attacks.found import attack_of, training_rows
from reflux.graphs.attacks.obedient import OBEDIENT, ObedientClient
from reflux.graphs.attacks.search import Search, Searched, Target, at_depth
from reflux.graphs.attacks.techniques import Attack
from reflux.graphs.attacks.world import attacked, case_overseer
from reflux.graphs.voting.voting import VotePolicy
from reflux.models import open_run
from reflux.overseers import candidates_of, overseer_named, with_max_tokens
from reflux.report.attack_chart import Line, write_chart

SCRIPT = "cases"
"""The overseer of the shipped cases, which divides them without a model."""


@dataclass(frozen=True)
class AttackPlan:
    """The systems to attack, and with what they are asked."""

    keys: Sequence[str]
    cases: Sequence[Case]
    tools: Sequence[str]
    """Of the shipped cases."""
    overseer: str
    source: str
    """Of the cases: `shipped`, `file`, or `agentdojo`."""
    granted: Sequence[str]
    """Tools of the user."""
    depths: Sequence[int]
    calls: int
    tokens: int
    max_tokens: int
    seed: int
    concurrency: int
    adversary: str
    """The model that rewords demands; empty for none."""
    policies: dict[str, Policy] = field(default_factory=dict[str, "Policy"])

    def __post_init__(self) -> None:
        """Read the policies before the first call.

        Raises:
            UsageError: there is no such policy.
        """
        for key in self.keys:
            name = _policy_of(key)
            if name:
                path = Path(name)
                named = read_yaml(path) if path.suffix in (".yaml", ".yml") else name
                self.policies[name] = _policy(named)

    def context(self, opened: OpenRun, model: str, key: str, grants: Grants) -> AmplifyContext:
        """The context of one system, before a case gives it its tools."""
        policy, candidates = self.policies.get(_policy_of(key)), 0
        if self.source == "shipped" and self.overseer in ("", SCRIPT):
            overseer = case_overseer(typed=policy is not None)
        else:
            named = overseer_named(overseer_of(self.overseer, None))
            overseer, candidates = with_max_tokens(named, self.max_tokens), candidates_of(named)
        context = AmplifyContext(
            opened.recorded_client,
            model,
            (overseer,),
            limits=limits_of(max(self.depths), self.calls, self.tokens, None, candidates),
            weighing=Weighing.of(candidates),
            votes=VotePolicy(max_votes=1),
            max_tokens=self.max_tokens,
            seed=self.seed,
            policy=policy,
        )
        return context.granting(grants)

    def asked(
        self, context: AmplifyContext, case: Case, notes: Mapping[str, str]
    ) -> AmplifyContext:
        if self.source == "agentdojo":
            return dojo_context(context, case, notes)
        return attacked(context, case, notes, self.tools) if self.source == "shipped" else context

    async def targets(self, opened: OpenRun, agent: str, stack: AsyncExitStack) -> list[Target]:
        """The systems by name, the amplified ones with each number of levels."""
        grants = await stack.enter_async_context(open_tools(self.granted))
        names = self.tools or [tool.spec.name for tool in grants.get("answer", ())]
        targets: list[Target] = []
        for key in self.keys:
            specs = SystemSpecs(
                opened,
                agent,
                lambda model, seed, key=key: self.context(opened, model, key, grants),
                str.strip,
                stack,
            )
            spec = await specs.system_spec(key if is_graph(key) else key.partition("+")[0])
            policy = self.policies.get(_policy_of(key))
            asked = [self.source, self.overseer, *self.tools, *self.granted]
            limits = [*self.depths, self.calls, self.tokens, self.max_tokens]
            digest = [spec.digest, asked, limits, policy and policy.to_json()]
            system = spec.make(self.seed)
            target = Target(key, json.dumps(digest), system, self.asked, names)
            divides = isinstance(system, Amplified) and len(self.depths) > 1
            targets += [at_depth(target, each) for each in self.depths] if divides else [target]
        return targets


def _policy_of(key: str) -> str:
    """The policy that a system's name ends in; empty for a system without one."""
    return "" if is_graph(key) else key.partition("+")[2]


def _policy(named: Any) -> Policy:
    policy = Policy.of(named)
    if policy is None:
        raise UsageError("a policy is empty; write strict, standard or FILE.yaml after the +")
    return policy


async def _reworder(
    plan: AttackPlan, opened: OpenRun, agent: str, stack: AsyncExitStack
) -> AmplifyContext | None:
    if not plan.adversary:
        return None
    specs = SystemSpecs(
        opened,
        agent,
        lambda model, seed: plan.context(opened, model, "direct", {}),
        str.strip,
        stack,
    )
    spec = await specs.system_spec(plan.adversary)
    return replace(spec.make(plan.seed).context, policy=None, max_tokens=128)


async def attack_all(
    folder: RunFolder, plan: AttackPlan, search: Search, model: str | None
) -> list[Searched]:
    if model == OBEDIENT:
        opened, agent = OpenRun(folder, client=_worst(plan)), OBEDIENT
    else:
        opened, agent = open_run(
            folder, model, batch_config(folder), concurrency=plan.concurrency, warm=False
        )
    async with opened, AsyncExitStack() as stack:
        targets = await plan.targets(opened, agent, stack)
        reworder = await _reworder(plan, opened, agent, stack)
        with ProgressView() as view:
            search = replace(
                search,
                reworder=reworder,
                listener=lambda key, done, total: view(f"attack {key}", done, total, ""),
            )
            return [await search.against(target) for target in targets]


def _worst(plan: AttackPlan) -> ChatClient:
    if plan.source == "agentdojo":
        return KnowingClient(plan.cases)
    return ObedientClient([g for case in plan.cases for g in case.goals(plan.seed, plan.tools)])


def known_attacks(path: Path) -> list[Attack]:
    """The attacks of a file, each once.

    Raises:
        UsageError: a line is no attack.
    """
    found: dict[tuple[str, ...], Attack] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            body = json.loads(line)
            if body["technique"] != "none" and body.get("success", True):
                attack = attack_of(body)
                key = attack.technique, attack.form, attack.wording, *attack.suffix
                found[key] = attack
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{path}, line {number} is no attack ({error}): name an attempts.jsonl, "
                "rows.jsonl or held_out.jsonl of an earlier search"
            ) from error
    return list(found.values())


def write_search(
    out: Path,
    body: Mapping[str, Any],
    found: Sequence[Searched],
    plan: AttackPlan,
    teacher: str = "",
) -> None:
    """Write a search whole: figures, a chart, attempts, and rows for training and held out."""
    write_whole(out / "attack.json", json.dumps(body, indent=1) + "\n")
    drawn = [Line.of(each, kind) for each in body["systems"] for kind in ("control", "value")]
    write_chart(out / "attack.svg", {"search": drawn})
    attempts = [
        {"system": each.key} | attempt.to_json() for each in found for attempt in each.attempts
    ]
    taught = next((each for each in found if each.key.partition(", ")[0] == teacher), None)
    different: dict[str, Mapping[str, Any]] = {}  # Systems with one teacher share rows.
    for each in found if plan.source != "agentdojo" else ():  # Its data teaches nobody.
        for row in training_rows(each, plan.tools, taught):
            learned = json.dumps([row["prompt"], row["completion"]])
            different.setdefault(learned, {"system": each.key} | row)
    rows = list(different.values())
    for name, lines in (
        ("attempts.jsonl", attempts),
        ("rows.jsonl", [row for row in rows if not row["held_out"]]),
        ("held_out.jsonl", [row for row in rows if row["held_out"]]),
    ):
        write_whole(out / name, "".join(json.dumps(line) + "\n" for line in lines))
