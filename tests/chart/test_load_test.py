"""The load test in the chart: locust as Jobs, what their pods reach, and the short run of `helm test`."""

from typing import Any

import pytest
import yaml

from load.scenario import from_tree
from tests.chart.rendering import ROOT, Object, kinds, one, render, render_as

ON: dict[str, Any] = {"loadTest": {"enabled": True}}
STEADY = {"name": "mine", "arrivals": {"kind": "constant", "rate_per_s": 2, "duration_s": 5}, "mix": {"stream": 1}}
COMPONENT = "app.kubernetes.io/component"


def with_load(**values: Any) -> list[Object]:
    return render({"loadTest": {**ON["loadTest"], **values}})


def job(objects: list[Object], component: str) -> Object:
    (found,) = (i for i in objects if i["kind"] == "Job" and i["metadata"]["labels"][COMPONENT] == component)
    return found


def container(item: Object) -> Object:
    spec = item["spec"].get("template", item)["spec"]
    (found,) = spec["containers"]
    return dict(found)


def scenarios(objects: list[Object]) -> dict[str, Any]:
    (found,) = (item for item in objects if item["kind"] == "ConfigMap" and "scenario.yaml" in item["data"])
    return {name: yaml.safe_load(text) for name, text in found["data"].items()}


def option(item: Object, name: str) -> str:
    arguments = container(item)["args"]
    return str(arguments[arguments.index(name) + 1])


def test_by_default_there_is_nothing_of_it() -> None:
    assert not [name for item in render() if "load" in (name := item["metadata"]["name"])]
    assert {item["metadata"]["labels"][COMPONENT] for item in render()} == {"api", "simulator", "test"}


def test_workers_find_the_master_of_their_run_and_it_waits_for_all_of_them() -> None:
    objects = with_load(workers=3)
    master, workers = job(objects, "load-master"), job(objects, "load")
    assert workers["spec"]["completionMode"] == "Indexed"
    assert workers["spec"]["completions"] == workers["spec"]["parallelism"] == 3
    assert option(master, "--expect-workers") == "3"
    service = one(objects, "Service", option(workers, "--master-host"))
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    labels = master["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert {port["name"] for port in container(master)["ports"]} == {service["spec"]["ports"][0]["targetPort"]}
    assert option(master, "--host") == "http://try-llm-api:8000"


def test_a_run_that_failed_is_not_begun_again() -> None:
    master = job(with_load(), "load-master")["spec"]
    assert master["backoffLimit"] == 0
    assert master["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("component", ["load", "load-master"])
def test_jobs_end_and_go(component: str) -> None:
    spec = job(with_load(timeoutSeconds=900, ttlSecondsAfterFinished=60), component)["spec"]
    assert (spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (900, 60)
    assert job(with_load(ttlSecondsAfterFinished=0), component)["spec"]["ttlSecondsAfterFinished"] == 0
    assert "ttlSecondsAfterFinished" not in job(with_load(ttlSecondsAfterFinished=None), component)["spec"]


def test_what_is_changed_makes_other_jobs_since_a_job_cannot_be_changed() -> None:
    names = {
        job(with_load(**values), "load-master")["metadata"]["name"]
        for values in (
            {},
            {"workers": 3},
            {"args": ["--rate", "9"]},
            {"scenario": {**STEADY, "name": "other"}},
            {"image": {"tag": "2"}},
        )
    }
    assert len(names) == 5
    assert with_load() != with_load(workers=3)


def test_names_leave_room_for_the_index_of_the_last_worker() -> None:
    objects = render_as("a" * 53, {"loadTest": {"enabled": True, "workers": 1000}})
    assert len(job(objects, "load")["metadata"]["name"] + "-999") <= 63


def test_the_scenario_is_what_the_values_say_with_a_model_that_the_release_has() -> None:
    found = scenarios(with_load(scenario=STEADY))["scenario.yaml"]
    assert found == {**STEADY, "model": "claude-3-haiku-20240307"}
    assert from_tree(found, "chart").duration_s == 5
    assert scenarios(with_load(scenario={**STEADY, "model": "m"}))["scenario.yaml"]["model"] == "m"


def test_without_one_it_is_that_which_load_brings() -> None:
    found = scenarios(with_load())
    brought = yaml.safe_load((ROOT / "load" / "scenarios" / "smoke.yaml").read_text())
    for route in ("jobs_poll", "jobs_stream"):
        # Without Redis there are none.
        del brought["mix"][route]
    assert found["scenario.yaml"] == found["smoke.yaml"] == {**brought, "model": "claude-3-haiku-20240307"}


def test_jobs_are_asked_for_where_there_is_redis() -> None:
    assert {"jobs_poll", "jobs_stream"} <= scenarios(render({**ON, "redis": {"enabled": True}}))["smoke.yaml"][
        "mix"
    ].keys()


def test_the_key_comes_from_a_secret_and_stands_nowhere_else() -> None:
    for values, secret, entry in (
        ({}, "try-llm-api-callers", "key"),
        ({"tests": {"callerKeySecret": "a", "callerKeySecretKey": "b"}}, "a", "b"),
        (
            {"tests": {"callerKeySecret": "a"}, "loadTest": {"callerKeySecret": "c", "callerKeySecretKey": "d"}},
            "c",
            "d",
        ),
    ):
        objects = render({**values, "loadTest": {**ON["loadTest"], **values.get("loadTest", {})}})
        for item in (job(objects, "load"), job(objects, "load-master"), one(objects, "Pod", "try-llm-api-load-test")):
            (key,) = (env for env in container(item)["env"] if env["name"] == "LOAD_API_KEY")
            assert key["valueFrom"] == {"secretKeyRef": {"name": secret, "key": entry}}


def reached(objects: list[Object], component: str) -> set[tuple[int, str | None]]:
    """Return port and component of everything that a component's pods reach."""
    (policy,) = (
        item["spec"]
        for item in objects
        if item["kind"] == "NetworkPolicy" and item["spec"]["podSelector"]["matchLabels"][COMPONENT] == component
    )
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    return {
        (port["port"], peer and peer["podSelector"]["matchLabels"][COMPONENT])
        for rule in policy["egress"]
        for port in rule["ports"]
        for peer in rule.get("to", [None])
    }


def test_workers_reach_master_and_api_and_nothing_else() -> None:
    objects = with_load()
    assert reached(objects, "load") == {(53, None), (8000, "api"), (5557, "load-master")}
    assert reached(objects, "load-master") == {(53, None), (8000, "api")}
    master = one(objects, "NetworkPolicy", "try-llm-api-load-master")["spec"]["ingress"]
    assert [rule["from"][0]["podSelector"]["matchLabels"][COMPONENT] for rule in master] == ["load"]
    assert not one(objects, "NetworkPolicy", "try-llm-api-load")["spec"].get("ingress")


def test_the_api_lets_the_load_in_as_long_as_there_is_any() -> None:
    policy = {"networkPolicy": {"enabled": True, "from": [{"namespaceSelector": {}}]}}
    for values, expected in (({}, {"test"}), (ON, {"test", "load", "load-master"})):
        (rule, _) = one(render({**policy, **values}), "NetworkPolicy")["spec"]["ingress"]
        peers = [peer["podSelector"]["matchLabels"] for peer in rule["from"] if "podSelector" in peer]
        assert {labels[COMPONENT] for labels in peers} == expected


def test_the_master_begins_once_the_release_answers() -> None:
    spec = job(with_load(), "load-master")["spec"]["template"]["spec"]
    (waits,) = spec["initContainers"]
    assert "ask_until" in waits["args"][1]
    assert {"CALLER_KEY", "ADDRESS", "MODEL", "TIMEOUT_S"} == {env["name"] for env in waits["env"]}
    assert "initContainers" not in job(with_load(), "load")["spec"]["template"]["spec"]


def test_results_are_kept_on_a_claim_in_a_folder_for_each_run() -> None:
    objects = with_load(resultsClaim="results")
    master = job(objects, "load-master")
    volumes = {volume["name"]: volume for volume in master["spec"]["template"]["spec"]["volumes"]}
    assert volumes["results"]["persistentVolumeClaim"] == {"claimName": "results"}
    run = master["spec"]["template"]["metadata"]["labels"]["llm-api/load-run"]
    assert option(master, "--out") == f"/results/{run}"
    mounts = {mount["name"]: mount["mountPath"] for mount in container(master)["volumeMounts"]}
    assert mounts["results"] == "/results"


def test_helm_test_runs_a_short_load_and_only_where_there_is_one() -> None:
    found = one(with_load(), "Pod", "try-llm-api-load-test")
    assert found["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert option(found, "--scenario") == "/etc/load/smoke.yaml"
    assert float(option(found, "--duration")) <= 10
    assert found["spec"]["restartPolicy"] == "Never"
    assert {item["metadata"]["name"] for item in render() if item["kind"] == "Pod"} == {"try-llm-api-test"}
    assert "Job" not in kinds(render())


def test_all_of_them_run_the_image_of_the_load_tests() -> None:
    objects = with_load(image={"repository": "r.example/load", "tag": "7"})
    for item in (job(objects, "load"), job(objects, "load-master"), one(objects, "Pod", "try-llm-api-load-test")):
        assert container(item)["image"] == "r.example/load:7"
