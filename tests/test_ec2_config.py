"""fleet.yaml and what is computed from it without asking AWS: prices, slots, user data, policy."""

import datetime as dt
import json
import pathlib
import re
from typing import Any

import pytest
import yaml

from workflows.ec2 import config, prices
from workflows.ec2.api import LAUNCH, SLOT, Instance, tag_list
from workflows.ec2.bootstrap import recipe
from workflows.ec2.config import Access, Spec, find_spec, parse_spec
from workflows.ec2.ground import key_pair
from workflows.ec2.policy import policy
from workflows.ec2.prices import Pool
from workflows.ec2.provision import slots_for
from workflows.ec2.sample import SAMPLE
from workflows.ec2.userdata import LIMIT, user_data
from workflows.errors import ConfigError, FleetError, NoCapacity, UsageError

# Dollars an hour of a node's disk and public address.
BESIDE = 30 * 0.08 / 730 + 0.005
NOON = dt.datetime(2026, 11, 21, 12, tzinfo=dt.timezone.utc)
POOLS = [
    Pool("i3en.2xlarge", f"us-east-1{zone}", spot, spot, 0.904)
    for zone, spot in (("b", 0.2712), ("c", 0.2712), ("d", 0.2712), ("a", 0.2886))
]


def parsed(**keys: Any) -> Spec:
    return parse_spec({"name": "crawl", **keys}, "crawl.yaml", ".")


def problems_of(**keys: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parsed(**keys)
    return raised.value.problems


# -- the file --------------------------------------------------------------------------------------


def test_the_sample_says_the_defaults() -> None:
    assert parse_spec(yaml.safe_load(SAMPLE), "sample", ".") == Spec(name="crawl")


def test_an_unknown_key_is_an_error_with_the_near_match() -> None:
    assert problems_of(node=3, acess={}, spot={"max_prize": 1}, ttl={"idel": "1m"}) == [
        "crawl.yaml: no such key 'node'; did you mean 'nodes'?",
        "crawl.yaml: no such key 'acess'; did you mean 'access'?",
        "crawl.yaml: spot: no such key 'max_prize'; did you mean 'max_price'?",
        "crawl.yaml: ttl: no such key 'idel'; did you mean 'idle'?",
    ]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"nodes": "three"}, "nodes: must be a whole number from 1 to 1000"),
        ({"nodes": True}, "nodes: must be a whole number from 1 to 1000"),
        ({"nodes": 2, "min_nodes": 3}, "min_nodes is more than nodes"),
        ({"types": ["m5.large", "c5.large", "m5.large"]}, "types names m5.large twice"),
        ({"ttl": {"idle": "soon"}}, "ttl: idle: must be a duration: 90, 90s, 30m, 2h or 1d"),
        ({"ttl": {"idle": "2h", "max": "1h"}}, "ttl: idle is more than max"),
        (
            {"spot": {"strategy": "cheap"}},
            f"strategy must be one of {', '.join(config.STRATEGIES)}",
        ),
        ({"spot": {"max_price": 0.0001}}, "at least 0.001"),
        ({"ami": "ubuntu"}, "ami must be ami-..., ssm:/path, or one of ssm:al2023"),
        ({"types": []}, "types must name at least one instance type"),
        ({"scratch": "/mnt; rm -rf /"}, "scratch may hold"),
        ({"access": {"address": "ipv6"}}, "address must be public or private"),
        ({"access": {"jump": {"user": "ann"}}}, "address is missing"),
        ({"post_init": "none.sh"}, "no file ./none.sh"),
        ({"tags": {"aws:x": "1"}}, "'aws:x' cannot be a tag's name"),
        ({"tags": {"AWS:x": "1"}}, "'AWS:x' cannot be a tag's name"),
        ({"tags": {"x" * 128: "1"}}, "cannot be a tag's name"),
        ({"tags": {"": "1"}}, "'' cannot be a tag's name"),
        ({"tags": {"x": "y" * 257}}, "x: EC2 allows 256 characters"),
        ({"tags": {f"t{n}": "" for n in range(36)}}, "36 tags: EC2 allows 50, of which 15 are"),
        ({"slots_per_core": 0}, "slots_per_core: must be a number from 0.01 to 64"),
        ({"limits": {"open_files": 5}}, "open_files: must be a whole number from 1024 to"),
        ({"limits": {"files": 5000}}, "no such key 'files'; did you mean 'open_files'?"),
        ({"name": "Crawl 1"}, "name must be up to 31 of a-z 0-9 -"),
    ],
)
def test_a_bad_value_is_named(keys: dict[str, Any], problem: str) -> None:
    (found,) = problems_of(**keys)

    assert problem in found


def test_a_fleet_is_found_in_its_own_file_in_fleet_yaml_or_in_luigi_cfg(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text("nodes: 1")
    (tmp_path / "fleet.yaml").write_text("name: two\nnodes: 2")
    (tmp_path / "luigi.cfg").write_text("[ec2 three]\nnodes = 3\nspot = {fallback: false}\n")

    found = {name: find_spec(name) for name in ("one", "two", "three", "four")}

    assert {name: spec.nodes for name, spec in found.items()} == {
        "one": 1,
        "two": 2,
        "three": 3,
        "four": Spec.nodes,
    }
    assert found["three"].spot.fallback is False
    assert all(spec.name == name for name, spec in found.items())


def test_a_region_that_contradicts_the_fleets_file_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text("region: us-west-2")
    (tmp_path / "luigi.cfg").write_text("[ec2 two]\nregion = us-west-2\n")

    for name, where in (("one", "one.yaml"), ("two", r"luigi.cfg \[ec2 two\]")):
        with pytest.raises(UsageError, match=f"--region eu-west-1, but {where} says"):
            find_spec(name, "eu-west-1")
        assert find_spec(name, "us-west-2").region == find_spec(name).region == "us-west-2"
    assert find_spec("three", "eu-west-1").region == "eu-west-1"


@pytest.mark.parametrize("nodes", [-1, 0, 1001])
def test_a_fleet_is_not_resized_to_what_its_file_could_not_say(nodes: int) -> None:
    with pytest.raises(UsageError, match=f"has 1 to 1000 nodes, not {nodes}"):
        Spec("crawl").resized(nodes)


# -- what EC2 is told ------------------------------------------------------------------------------


def test_user_data_holds_what_must_work_when_ssh_never_does_and_fits() -> None:
    spec = Spec("crawl", access=Access(user="ann"))

    text = user_data(spec, ("PRIVATE", "ssh-ed25519 BOOT"), "ssh-ed25519 LOGIN")

    made = yaml.safe_load(text)
    assert text.startswith("#cloud-config\n")
    assert len(text.encode()) < LIMIT
    assert made["ssh_deletekeys"] is True
    assert made["ssh_keys"] == {
        "ed25519_private": "PRIVATE",
        "ed25519_public": "ssh-ed25519 BOOT",
    }
    assert made["users"][1]["ssh_authorized_keys"] == ["ssh-ed25519 LOGIN"]
    unit = next(f for f in made["write_files"] if f["path"].endswith(".service"))["content"]
    assert "agent --home /home/ann/.workflows --idle 1800 --max 43200" in unit
    # Not once, at the first boot: a reboot takes the rules away. - : nor may it keep the agent off.
    closed = "ExecStartPre=-/usr/bin/env python3 /usr/local/sbin/workflows-node closeimds --home "
    assert closed + "/home/ann/.workflows\n" in unit
    assert unit.index("ExecStartPre") < unit.index("ExecStart=")
    assert "StartLimitIntervalSec=0" in unit  # however often it fails, it is started again
    with_profile = user_data(
        Spec("crawl", profile="p"), ("PRIVATE", "ssh-ed25519 BOOT"), "ssh-ed25519 LOGIN"
    )
    assert "ExecStartPre" not in with_profile


def test_user_data_that_ec2_would_refuse_is_refused_here() -> None:
    with pytest.raises(FleetError, match=f"EC2 takes {LIMIT}"):
        user_data(Spec("crawl"), ("x" * LIMIT, ""), "")


def test_a_tag_that_ec2_would_refuse_is_refused_here() -> None:
    with pytest.raises(FleetError, match="tag a is too long"):
        tag_list({"a": "x" * 257})


def test_a_key_pair_fits_into_a_tag() -> None:
    private, public = key_pair()

    assert private.startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert len(public) <= 256


def test_the_policy_lets_nothing_be_made_untagged_and_nothing_else_be_removed() -> None:
    made = policy("arn:aws:iam::1:role/nodes")

    by_name = {statement["Sid"]: statement for statement in made["Statement"]}
    assert "aws:RequestTag/workflows:fleet" in json.dumps(by_name["MakeTagged"]["Condition"])
    assert "aws:ResourceTag/workflows:fleet" in json.dumps(by_name["ChangeOwn"]["Condition"])
    assert by_name["NodesRole"]["Resource"] == ["arn:aws:iam::1:role/nodes"]
    destructive = [
        statement["Sid"]
        for statement in made["Statement"]
        if any("Delete" in a or "Terminate" in a for a in statement["Action"])
    ]
    assert destructive == ["ChangeOwn"]
    assert not any(a == "*" or a.endswith(":*") for s in made["Statement"] for a in s["Action"])


@pytest.mark.parametrize(
    ("region", "partition", "service"),
    [
        ("eu-west-1", "aws", "ec2.amazonaws.com"),
        ("cn-north-1", "aws-cn", "ec2.amazonaws.com.cn"),
        ("us-gov-west-1", "aws-us-gov", "ec2.amazonaws.com"),
    ],
)
def test_the_policy_is_for_the_partition_of_its_region(
    region: str, partition: str, service: str
) -> None:
    role = f"arn:{partition}:iam::123456789012:role/nodes"

    text = json.dumps(policy(role, region))

    assert set(re.findall(r"arn:([a-z-]+):", text)) == {partition}
    assert json.dumps(policy(role)) == text  # a role's ARN says it as well
    assert f'"iam:PassedToService": "{service}"' in text


def test_a_role_of_another_partition_than_the_region_or_that_is_no_arn_is_refused() -> None:
    for role, region, why in (
        ("arn:aws:iam::1:role/x", "cn-north-1", "of the partition aws, --region cn-north-1 of"),
        ("nodes", "", "'nodes' is not an ARN"),
        ("", "mars-north-1", "AWS has no region 'mars-north-1'"),
    ):
        with pytest.raises(UsageError, match=why):
            policy(role, region)


# -- slots -----------------------------------------------------------------------------------------


def instance(name: str, slot: str = "") -> Instance:
    tags = {SLOT: slot, LAUNCH: "x"} if slot else {LAUNCH: "x"}
    return Instance(name, "running", "m7i.large", "us-east-1a", True, "", "", NOON, None, tags)


def test_slots_are_kept_and_the_lowest_free_ones_are_given() -> None:
    live = [instance("a", "2"), instance("b"), instance("c", "0"), instance("d")]

    assert slots_for(live, 4) == {"a": 2, "b": 1, "c": 0, "d": 3}


def test_of_two_nodes_in_one_slot_the_older_keeps_it_and_the_other_is_too_many() -> None:
    live = [instance("old", "0"), instance("young", "0"), instance("b", "1")]

    assert slots_for(live, 2) == {"old": 0, "b": 1, "young": 2}


# -- prices ----------------------------------------------------------------------------------------


def test_prices_are_a_table_by_zone_cheapest_first_with_the_savings() -> None:
    lines = prices.table(POOLS).splitlines()

    assert lines[0] == "i3en.2xlarge: on demand: 0.904, spot offers 70% savings"
    assert [line.split()[:2] for line in lines[2:]] == [
        ["us-east-1b", "0.271200"],
        ["us-east-1c", "0.271200"],
        ["us-east-1d", "0.271200"],
        ["us-east-1a", "0.288600"],
    ]


def test_the_hourly_cost_is_nodes_times_price_and_at_worst_the_fallback() -> None:
    cost = prices.hourly(Spec("crawl", nodes=12), POOLS, 12)

    assert cost.expected == pytest.approx(12 * (0.2712 + BESIDE))
    assert cost.at_most == pytest.approx(12 * (0.904 + BESIDE))


def test_the_hourly_cost_has_each_hosts_disk_and_public_address() -> None:
    large = Spec("crawl", nodes=2, disk_gb=730, results_host=True)
    private = Spec("crawl", nodes=2, disk_gb=730, access=Access(address="private"))

    assert prices.hourly(large, POOLS, 2, 0.1 / 730).beside == pytest.approx(3 * (0.1 + 0.005))
    assert prices.hourly(private, POOLS, 2, 0.1 / 730).beside == pytest.approx(2 * 0.1)


def test_a_limit_of_dollars_counts_disks_and_public_addresses() -> None:
    nodes = 12 * 0.904
    spec = Spec("crawl", nodes=12, max_hourly_cost=nodes + 0.01)

    with pytest.raises(FleetError, match=r"disks and addresses \$0\.0995\), above"):
        prices.hourly(spec, POOLS, 12).check(spec)


def test_at_worst_the_dearest_type_is_bought_on_demand() -> None:
    found = [Pool("small", "a", 0.01, 0.01, 0.05), Pool("large", "a", 0.02, 0.02, 0.40)]
    spec = Spec("crawl", results_host=True, spot=config.Spot(on_demand_base=1))

    cost = prices.hourly(spec, found, 3)

    assert cost.expected == pytest.approx(2 * 0.01 + 2 * 0.05 + 4 * BESIDE)
    assert cost.at_most == pytest.approx(4 * 0.40 + 4 * BESIDE)


def test_what_may_cost_nobody_knows_what_is_refused_if_there_is_a_limit() -> None:
    found = [Pool("known", "a", 0.01, 0.01, 0.05), Pool("odd", "a", 0.01, 0.01, None)]

    cost = prices.hourly(Spec("crawl"), found, 3)

    cost.check(Spec("crawl"))
    with pytest.raises(FleetError, match=r"does not tell the price of odd, .* max_hourly_cost 1;"):
        cost.check(Spec("crawl", max_hourly_cost=1.0))
    only_spot = Spec("crawl", max_hourly_cost=1.0, spot=config.Spot(fallback=False))
    prices.hourly(only_spot, found, 3).check(only_spot)


def test_what_may_cost_more_than_the_limit_is_refused() -> None:
    spec = Spec("crawl", nodes=12, max_hourly_cost=10.0)

    with pytest.raises(FleetError, match=r"could cost \$10.9475 an hour .* max_hourly_cost 10"):
        prices.hourly(spec, POOLS, 12).check(spec)


def test_a_max_price_below_the_market_is_a_named_failure_not_a_wait() -> None:
    spec = Spec("crawl", spot=config.Spot(max_price=0.1))

    with pytest.raises(
        NoCapacity, match=r"max_price 0\.1 is below the cheapest price of now, 0\.27"
    ):
        prices.hourly(spec, POOLS, 3)


# -- recipes ---------------------------------------------------------------------------------------


def test_a_recipe_is_packages_then_pip_then_post_init_and_a_change_runs_what_follows(
    tmp_path: pathlib.Path,
) -> None:
    pip, script = tmp_path / "requirements.txt", tmp_path / "init.sh"
    pip.write_text("duckdb\n")
    script.write_text("true\n")
    spec = Spec("crawl", packages=("git",), pip=str(pip), post_init=str(script))

    before = recipe(spec)
    pip.write_text("duckdb==1\n")
    after = recipe(spec)

    assert [stage.name for stage in before.stages] == ["scratch", "packages", "pip", "post_init"]
    same = [a.digest == b.digest for a, b in zip(before.stages, after.stages, strict=True)]
    assert same == [True, True, False, False]


def test_a_fleet_without_a_name_is_refused_with_what_to_write() -> None:
    with pytest.raises(UsageError, match=r"--fleet ec2:NAME, .* NAME in NAME\.yaml"):
        find_spec("")
