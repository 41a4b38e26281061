"""The lineup of attacks that a run carries out: those of a suite, and those that a user names."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from attacks import Attack, Facts, ThreatModel
from attacks.problem import Family
from benchmark.errors import UserError
from benchmark.spec.components import SOURCE, Component, configure
from benchmark.spec.learned_suite import LearnedSuite
from benchmark.spec.registry import ATTACKS, SUITES
from benchmark.spec.run_spec import RunSpec

# The component of one attack, and the labels of the attacks before it in its series.
Member = tuple[Component, tuple[str, ...]]


@dataclass(frozen=True)
class Entry:
    """A configured attack, and the labels of the attacks before it in its series.

    It works only on the samples that these left unbroken.
    """

    attack: Attack
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lineup:
    """The attacks of a run.

    entries   the attacks by label, in order.
    notes     lines for the report: on what was learned, and attacks of the suite that were left
              out.
    in_order  whether a cascade keeps this order, because it was learned, and does not begin with
              the cheapest attack.
    """

    entries: dict[str, Entry]
    notes: tuple[str, ...] = ()
    in_order: bool = False


def choose(
    suite: str | LearnedSuite | None,
    named: list[Component],
    threat: ThreatModel,
    models: Collection[str] = (),
    norms: Collection[str] = (),
) -> Lineup:
    """Choose the attacks of a run: those of a suite, by its name or as it was learned from another
    run, then those named, each once.

    An attack of the suite is left out if it does not run under the threat's norm, or if it crafts
    its points on a model that is not among the `models`. A named attack has to run under that norm,
    or under one of the `norms` of other threats: it is then in the lineup all the same, to be told
    as one that does not apply under this one. An option of an attack may have several
    values. This makes a series of attacks, of which each works only on the samples that the ones
    before it left unbroken.

    Raises UserError for unknown names, for two attacks with the same label, for a named attack that
    runs under none of the norms, and where none of the attacks runs under the threat's.

    >>> series = Component.model_validate("cw/steps=100,1000")
    >>> lineup = choose("strong", [series], ThreatModel("l2", 2.0))
    >>> {label: entry.after for label, entry in lineup.entries.items()}
    {'strong': (), 'cw/steps=100': (), 'cw/steps=1000': ('cw/steps=100',)}
    """
    # Collect them by label.
    of_suite = list(_members(_attacks_of(suite)))
    of_user = list(_members(named))
    members: dict[str, Member] = {}
    for member in of_suite + of_user:
        label = member[0].label
        if members.setdefault(label, member) != member:
            raise UserError(f"two attacks are labelled {label!r}: rename one")
    # Configure each, unless it has to be left out.
    entries, left_out = {}, []
    for label, member in members.items():
        attack = _configured(member[0])
        if member in of_user:
            check_norm(label, attack, threat.norm, *norms)
        missing = sorted(set(attack.facts.sources) - set(models))
        if member not in of_user and threat.norm not in attack.facts.norms:
            left_out.append(f"{label} ({runs_under(attack)})")
        elif missing and member not in of_user:
            left_out.append(f"{label} (no row {', '.join(missing)})")
        else:
            entries[label] = Entry(attack, member[1])
    if members and not any(threat.norm in entry.attack.facts.norms for entry in entries.values()):
        of = "" if of_user else f" of suite {str(suite)!r}"
        raise UserError(f"no attack{of} runs under {threat.norm}: name one that does")
    notes = [suite.note] if isinstance(suite, LearnedSuite) else []
    notes += [f"left out of suite {suite}: {', '.join(left_out)}"] if left_out else []
    return Lineup(entries, tuple(notes), isinstance(suite, LearnedSuite))


def attacks_of(spec: RunSpec) -> dict[str, Component]:
    """The attacks of a spec by their labels, each of a series by itself."""
    members = _members([*_attacks_of(spec.suite), *spec.attacks])
    return {component.label: component for component, _ in members}


def _attacks_of(suite: str | LearnedSuite | None) -> list[Component]:
    """The attacks of a suite. Raises UserError for an unknown one."""
    if isinstance(suite, LearnedSuite):
        return suite.attacks
    attacks = [] if suite is None else SUITES.get(suite).attacks
    return [Component.model_validate(attack) for attack in attacks]


def lineup_of(spec: RunSpec, norms: Collection[str] = ()) -> Lineup:
    """The attacks of a spec, which may craft their points on its defenses. Raises as `choose`."""
    labels = [component.label for component in spec.defenses]
    return choose(spec.suite, spec.attacks, spec.threat, labels, norms)


def check_norm(label: str, attack: Attack, *norms: str) -> None:
    """Raises UserError for an attack that runs under none of the norms."""
    if not set(norms) & set(attack.facts.norms):
        raise UserError(f"attack {label!r} {runs_under(attack)}")


def runs_under(attack: Attack) -> str:
    """Which norms an attack runs under, as messages say it."""
    return f"runs under {', '.join(attack.facts.norms)} only"


def check_attack(label: str, attack: object) -> Attack:
    """Check that an object is an attack, and return it.

    Raises UserError where it is not, which may happen for the entry of a plugin.
    """
    if not callable(attack):
        raise UserError(f"attack {label!r} cannot be called: give it __call__(self, problem)")
    if not isinstance(attack, Attack) or not isinstance(attack.facts, Facts):
        raise UserError(
            f"attack {label!r} does not say what it is: give it facts = attacks.Facts(family), "
            f"where the family is {' or '.join(get_args(Family))}"
        )
    return attack


def _configured(component: Component) -> Attack:
    """Create the attack that a component names. Raises UserError."""
    return check_attack(component.name, configure(ATTACKS, component))


def _members(components: Iterable[Component]) -> Iterator[Member]:
    """Each component, where a series counts as one component for each of its values.

    Raises UserError where more than one option has several values.
    """
    for component in components:
        several = {
            key: values
            for key, value in component.options.items()
            if (values := _values(key, value))
        }
        if len(several) > 1:
            raise UserError(
                f"attack {component.label!r}: one option may have several values, not "
                f"{' and '.join(several)}"
            )
        series = [component]
        for key, values in several.items():
            series = [component.with_option(key, value) for value in values]
        labels = tuple(member.label for member in series)
        yield from ((member, labels[:place]) for place, member in enumerate(series))


def _values(key: str, value: Any) -> list[Any]:
    """The values of an option that has several; empty for an option with one value."""
    if isinstance(value, list):
        return value
    # Commas within brackets belong to one value, which attacks of libraries may take.
    if isinstance(value, str) and "," in value and value[0] not in "([{" and key != SOURCE:
        return value.split(",")
    return []
