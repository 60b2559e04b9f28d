"""A step's class is refused when it is made, if what it states would be ignored or misread."""

from typing import TYPE_CHECKING, Any

import luigi
import luigi.util
import pytest

from workflows.errors import UsageError
from workflows.fetch import Fetch
from workflows.steps import Basename, Map, MapFromN, MapToN, Prefix

if TYPE_CHECKING:
    from conftest import Place


def made(kind: type = Map, /, *mixins: type, **states: Any) -> type:
    """Make a class of a step, as a user's module would."""
    return type("Mine", (*mixins, kind), {"__module__": "mine", **states})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("durabel", "durable"),
        ("durables", "durable"),
        ("timeout", "timeout_s"),
        ("time_out", "timeout_s"),
        ("timeouts", "timeout_s"),
        ("timeout_seconds", "timeout_s"),
        ("file", "files"),
        ("Files", "files"),
        ("upsteam", "upstream"),
        ("up_stream", "upstream"),
        ("comand", "command"),
        ("cmd", "command"),
        ("law", "laws"),
        ("total_law", "total_laws"),
        ("pips", "pip"),
        ("allow_emtpy", "allow_empty"),
        ("balance", "balanced"),
        ("gathr", "gather"),
    ],
)
def test_a_misspelt_attribute_is_refused_with_the_one_that_is_meant(name: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(command="cat", **{name: True}) if meant != "command" else made(**{name: "cat"})

    assert f"mine.Mine states {name}, which no step has: did you mean {meant}?" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["upstreams", "Upstream", "up_stream", "parent", "inputs", "after"]
)
def test_a_step_under_another_name_than_upstream_is_refused(name: str) -> None:
    # The step would read the URLs of the source in place of what Fetch makes.
    with pytest.raises(UsageError, match=f"states {name}, which no step has.* mean upstream"):
        made(command="cat", **{name: Fetch})
    with pytest.raises(UsageError, match=f"states {name}, which no step has.* mean upstream"):
        made(command="cat", **{name: [Fetch]})


def _requires(_: luigi.Task) -> list[luigi.Task]:
    return [Fetch()]


@pytest.mark.parametrize("name", ["requires", "run", "output", "complete", "input"])
@pytest.mark.parametrize("value", [Fetch, _requires, property(_requires)])
def test_a_method_by_which_steps_work_is_refused_unless_it_calls_that_of_steps(
    name: str, value: object
) -> None:
    with pytest.raises(UsageError, match=f"{name} of mine.Mine takes the place of .*super"):
        made(command="cat", **{name: value})

    class More(Map):
        command = "cat"

        def requires(self) -> "list[Any]":
            return [*super().requires()]

    assert More.requires is not Map.requires


def test_luigis_decorator_in_place_of_upstream_is_refused_before_anything_runs() -> None:
    here = {"__module__": __name__, "command": "cat"}
    decorated = luigi.util.requires(Fetch)(made(**here))

    with pytest.raises(UsageError, match=r"requires of \S+Mine takes the place .* upstream ="):
        _ = decorated().spec
    assert Fetch().spec
    assert made(MapFromN, upstream=Fetch, **here)().spec


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\nb", 3, None])
def test_a_name_that_can_name_no_directory_is_refused(name: object) -> None:
    with pytest.raises(UsageError, match=r"name of mine.Mine must be a text that can name"):
        made(command="cat", name=name)


def test_a_misspelt_property_and_one_of_a_mixin_are_refused_too() -> None:
    with pytest.raises(UsageError, match=r"states comand.* did you mean command"):
        made(comand=property(lambda _: "cat"))
    with pytest.raises(UsageError, match=r"states durabel.* did you mean durable"):
        made(command="cat", durabel=True, __annotations__={"durabel": bool})
    with pytest.raises(UsageError, match=r"states durabel.* did you mean durable"):
        made(Map, type("Kept", (), {"durabel": True}), command="cat")


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ({"upstream": "Fetch"}, "upstream of mine.Mine must be a step's class.*upstream = Fetch"),
        ({"upstream": Fetch()}, "must be a step's class.*upstream = Fetch"),
        ({"upstream": luigi.Task}, "must be a step's class"),
        ({"upstream": (Fetch,)}, "must be a step's class"),
        ({"files": "x.py"}, r"files of mine.Mine must be a tuple.*write \('x.py',\)"),
        ({"files": {"x.py"}}, "must be a tuple of texts, not {'x.py'}"),
        ({"files": (1,)}, "must hold texts alone, not 1"),
        ({"laws": "a = b"}, r"laws of mine.Mine must be a tuple.*write \('a = b',\)"),
        ({"total_laws": "a = b"}, "total_laws of mine.Mine must be a tuple"),
        ({"pip": "duckdb"}, r"pip of mine.Mine must be a tuple.*write \('duckdb',\)"),
        ({"pip": {"duckdb": 1}}, "pip of mine.Mine must be a tuple"),
        ({"durable": "yes"}, "durable of mine.Mine must be True or False, not 'yes'"),
        ({"durable": 1}, "must be True or False, not 1"),
        ({"allow_empty": "no"}, "allow_empty of mine.Mine must be True or False"),
        ({"timeout_s": "5"}, "timeout_s of mine.Mine must be a number of seconds.*not '5'"),
        ({"timeout_s": -1}, "must be a number of seconds.*not -1"),
        ({"timeout_s": float("nan")}, "must be a number of seconds.*not nan"),
        ({"timeout_s": float("inf")}, "must be a number of seconds.*not inf"),
        ({"timeout_s": True}, "must be a number of seconds.*not True"),
        ({"command": ["cat", "-n"]}, "command of mine.Mine must be a text"),
        ({"command": b"cat"}, "command of mine.Mine must be a text"),
        ({"command": "  "}, "command of mine.Mine is empty"),
        ({"command": lambda _: "cat"}, "command of mine.Mine is a method: write @property above"),
        ({"files": lambda _: ("x",)}, "files of mine.Mine is a method: write @property above"),
        ({"balanced": True}, "balanced is of a MapToN alone; mine.Mine is another"),
        ({"gather": Prefix()}, "gather is of a MapFromN alone; mine.Mine is another"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_right_one(
    states: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        made(**{"command": "cat", **states})


@pytest.mark.parametrize("value", [Prefix, "total", "Prefix()", True])
def test_a_gather_that_is_no_rule_is_refused(value: object) -> None:
    with pytest.raises(
        UsageError, match=r"gather of mine.Mine must be a rule.*gather = Prefix\(\)"
    ):
        made(MapFromN, command="cat", gather=value)


@pytest.mark.parametrize("value", ["rides/", property(lambda _: "rides/")])
def test_a_plain_attribute_in_place_of_a_parameter_is_refused(value: object) -> None:
    # The steps before it would read the default source.
    with pytest.raises(UsageError, match=r"source of mine\.Mine is a parameter of every step"):
        made(command="cat", source=value)


@pytest.mark.parametrize("name", ["nodes", "keys", "shards", "lineage", "spec", "finish"])
def test_an_attribute_that_hides_what_steps_work_by_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} of mine.Mine hides what every step has"):
        made(command="cat", **{name: 3})


@pytest.mark.parametrize(
    "states",
    [
        {"columns": ("a",), "FILE": "x", "_timeout": 5, "limit": 3, "pipe": "a | b"},
        {"column": "a", "filter": "x", "fields": 3, "together": True, "profile": "p"},
        {"command1": "a", "command2": "b"},
        {"commands": {"a": "cat"}, "command": property(lambda _: "cat")},
        {"file": "x.py", "files": ("x.py",)},
        {"timeout": luigi.FloatParameter(default=1.0), "upstreams": lambda _: ()},
        {
            "priority": 5,
            "retry_count": 3,
            "worker_timeout": 9,
            "disabled": False,
            "owner_email": "",
        },
        {"resources": {"licence": 1}, "task_namespace": "mine", "name": "Other"},
        {"source": luigi.Parameter(default="rides/")},
        {"job": Fetch, "Reader": type("Reader", (), {}), "parent": 3, "after": "noon"},
        {"files": ["x.py"], "laws": [], "timeout_s": 0, "upstream": None},
        {"files": property(lambda _: ("x",)), "pip": property(lambda _: ())},
        {"durable": luigi.BoolParameter(default=False), "timeout_s": luigi.FloatParameter()},
    ],
)
def test_names_of_a_users_own_are_let_be(states: dict[str, Any]) -> None:
    made(**{"command": "cat", **states})


def test_mixins_and_classes_between_are_steps_like_any_other() -> None:
    class Kept:
        durable = True
        allow_empty = True

    class Between(Kept, Map):
        """Has no command yet."""

    class Last(Between):
        command = "cat"

    class Spread(MapToN):
        command = "true"
        balanced = True

    class Joined(MapFromN):
        command = "true"
        gather = Basename()

    assert (Last.durable, Last.allow_empty, Spread.balanced) == (True, True, True)
    assert isinstance(Joined.gather, Basename)


def test_luigi_and_the_verbs_say_it_in_one_line_and_fail(place: "Place") -> None:
    place.key("a", b"a\n")
    place.module(
        "from workflows.steps import Map\nclass Copy(Map):\n"
        "    command = 'cat \"$(cat)\"'\n    durabel = True\n"
    )

    run = place.luigi("Copy")
    plan = place.run("workflows", "plan", "--module", "mine", "Copy")

    says = "workflows: mine.Copy states durabel, which no step has: did you mean durable?"
    assert (run.code, plan.code) == (1, 2), (run, plan)
    for done in (run, plan):
        assert done.err.startswith(says), done
        assert done.err.count("\n") == 1


def test_a_property_that_returns_one_text_is_refused_before_anything_runs(place: "Place") -> None:
    place.key("a", b"a\n")
    place.module(
        "from workflows.steps import Map\nclass Copy(Map):\n    command = 'cat \"$(cat)\"'\n"
        "    @property\n    def files(self):\n        return 'x.py'\n"
    )

    done = place.luigi("Copy")

    assert done.code == 35, done
    assert "files of Copy must be a tuple of texts, not one text: write ('x.py',)" in done.err
    assert not place.outputs("Copy")


OWN = """
from workflows.{module} import Fetch
from workflows.steps import Map, MapFromN, MapToN
class Select(Map):
    upstream = Fetch
    command = "tr a-z A-Z"
class GroupCount(Map):
    upstream = Select
    command = "wc -l"
class Shuffle(MapToN):
    upstream = GroupCount
    command = "cat > all; echo all"
class MergeCounts(MapFromN):
    upstream = Shuffle
    command = "xargs cat"
    durable = True
"""


@pytest.mark.parametrize("module", ["fetch", "tasks"])
def test_the_shipped_fetch_makes_no_step_of_ones_own_ambiguous(place: "Place", module: str) -> None:
    place.key("a", b"a\nb\n")
    place.module(OWN.format(module=module))

    select = place.luigi("Select")
    merged = place.luigi("MergeCounts")

    assert (select.code, merged.code) == (0, 0), (select, merged)
    assert place.outputs("Select") == {"a": b"A\nB\n"}
    assert merged.out.endswith("\n2\n")


def test_the_shipped_fetch_is_one_class_whatever_it_is_imported_from() -> None:
    from workflows import fetch, tasks

    assert tasks.Fetch is fetch.Fetch
    assert tasks.Fetch().name == tasks.Fetch().task_id.partition("_")[0] == "Fetch"
