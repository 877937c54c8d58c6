"""What a container finds: environment, files at its mount paths, and their updates."""

from __future__ import annotations

import base64
import json

import pytest
import yaml

from tidewheel.api.manifest import CONFIG_MAPS, PODS, SECRETS, SERVICES

from .world import (
    config_map,
    container,
    is_ready,
    phase,
    pod,
    python,
    run_once,
    shell,
    until,
    until_event,
    waits_for,
)

TELL_ENVIRONMENT = (
    "import json, os; open(os.environ['TIDEWHEEL_TERMINATION_LOG'], 'w').write(json.dumps(dict(os.environ)))"
)


async def environment_of(api, body):
    ended = await run_once(api, body)
    assert ended["exitCode"] == 0
    return json.loads(ended["message"])


async def test_the_downward_api_tells_the_pod_about_itself(api):
    fields = {
        "NAME": "metadata.name",
        "SPACE": "metadata.namespace",
        "UID": "metadata.uid",
        "TEAM": "metadata.labels['team']",
        "IP": "status.podIP",
        "HOST_IP": "status.hostIP",
        "NODE": "spec.nodeName",
    }
    env = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    env.append({"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}})
    env.append({"name": "URL", "value": "http://$(IP):80 $$(IP) $(NOBODY)"})

    seen = await environment_of(
        api,
        pod(
            "self",
            python(TELL_ENVIRONMENT, env=env, resources={"limits": {"cpu": "1500m"}}),
            once=True,
            labels={"team": "x"},
        ),
    )

    found = await api.get(PODS, "self", "default")
    address = found["status"]["podIP"]
    assert (seen["NAME"], seen["SPACE"], seen["TEAM"]) == ("self", "default", "x")
    assert (seen["UID"], seen["NODE"]) == (found["metadata"]["uid"], found["spec"]["nodeName"])
    assert (seen["IP"], seen["HOST_IP"], seen["CPUS"]) == (address, "127.0.0.1", "2")
    assert address.startswith("127.")
    assert seen["URL"] == f"http://{address}:80 $(IP) $(NOBODY)"


async def test_keys_of_config_maps_and_secrets_become_variables(api):
    await api.create(CONFIG_MAPS, config_map("settings", level="debug", depth="3"))
    secret = {"password": base64.b64encode(b"hush").decode()}
    metadata = {"name": "login", "namespace": "default"}
    await api.create(SECRETS, {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": secret})
    reference = {"name": "login", "key": "password"}
    env = [
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": reference}},
        {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "no", "optional": True}}},
    ]
    source = [{"prefix": "APP_", "configMapRef": {"name": "settings"}}]

    seen = await environment_of(
        api, pod("keys", python(TELL_ENVIRONMENT, env=env, envFrom=source), once=True)
    )

    assert (seen["APP_level"], seen["APP_depth"], seen["PASSWORD"]) == ("debug", "3", "hush")
    assert "NONE" not in seen


async def test_nothing_of_the_agents_environment_leaks_into_a_pod(api, monkeypatch):
    monkeypatch.setenv("AGENT_SECRET", "x")

    seen = await environment_of(api, pod("clean", python(TELL_ENVIRONMENT), once=True))

    assert set(seen) - {"LC_CTYPE"} == {
        "PATH",
        "HOME",
        "TMPDIR",
        "HOSTNAME",
        "TIDEWHEEL_POD_UID",
        "TIDEWHEEL_TERMINATION_LOG",
    }


async def test_a_missing_key_holds_the_container_back_until_it_is_there(api):
    reference = {"name": "late", "key": "answer"}
    env = [{"name": "ANSWER", "valueFrom": {"configMapKeyRef": reference}}]
    await api.create(
        PODS, pod("patient", shell('printf "$ANSWER" > /dev/termination-log', env=env), once=True)
    )
    found = await until(api, PODS, "patient", waits_for("CreateContainerConfigError"))
    assert container(found)["state"]["waiting"]["message"] == 'configmap "late" not found'

    await api.create(CONFIG_MAPS, config_map("late", answer="42"))

    ended = await until(api, PODS, "patient", lambda p: phase(p) == "Succeeded")
    assert container(ended)["state"]["terminated"]["message"] == "42"


async def test_files_stand_at_their_mount_paths(api):
    await api.create(CONFIG_MAPS, config_map("conf", **{"app.ini": "ini", "other": "o"}))
    volumes = [
        {
            "name": "conf",
            "configMap": {"name": "conf", "items": [{"key": "app.ini", "path": "deep/app.ini"}]},
        },
        {
            "name": "pod",
            "downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]},
        },
        {"name": "all", "projected": {"sources": [{"configMap": {"name": "conf"}}]}},
        {"name": "scratch", "emptyDir": {}},
    ]
    mounts = [
        {"name": "conf", "mountPath": "/etc/conf"},
        {"name": "pod", "mountPath": "/etc/pod"},
        {"name": "all", "mountPath": "/etc/all"},
        {"name": "scratch", "mountPath": "/scratch", "subPath": "mine"},
    ]
    script = "cat /etc/conf/deep/app.ini /etc/pod/name /etc/all/other > /scratch/out; cat /scratch/out > /dev/termination-log"

    ended = await run_once(api, pod("files", shell(script, volumeMounts=mounts), once=True, volumes=volumes))

    assert ended["message"] == "inifileso"


async def test_an_empty_dir_is_shared_by_the_containers_and_a_claim_outlives_the_pod(api):
    mounts = [{"name": "v", "mountPath": "/v"}]
    write = shell("echo kept > /v/file", name="first", volumeMounts=mounts)
    read = shell("cat /v/file > /dev/termination-log", volumeMounts=mounts)
    shared = [{"name": "v", "emptyDir": {}}]
    claimed = [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]

    ended = await run_once(api, pod("shares", read, once=True, initContainers=[write], volumes=shared))
    assert ended["message"] == "kept"
    await run_once(api, pod("writes", {**write, "name": "main"}, once=True, volumes=claimed))
    ended = await run_once(api, pod("reads", read, once=True, volumes=claimed))

    assert ended["message"] == "kept"


async def test_an_updated_config_map_reaches_the_running_container(api):
    await api.create(CONFIG_MAPS, config_map("live", text="one"))
    script = "until grep -q two /live/text; do touch ready; sleep 0.05; done; cat /live/text > /dev/termination-log"
    probe = {"exec": {"command": ["test", "-e", "ready"]}, "periodSeconds": 1}
    body = pod(
        "follows",
        shell(script, volumeMounts=[{"name": "v", "mountPath": "/live"}], readinessProbe=probe),
        once=True,
        volumes=[{"name": "v", "configMap": {"name": "live"}}],
    )
    await api.create(PODS, body)
    await until(api, PODS, "follows", is_ready)

    await api.patch(CONFIG_MAPS, "live", {"data": {"text": "two"}}, "default")

    ended = await until(api, PODS, "follows", lambda p: phase(p) == "Succeeded")
    assert container(ended)["state"]["terminated"]["message"] == "two"


async def test_a_volume_without_its_config_map_waits_and_says_so(api):
    volumes = [{"name": "v", "configMap": {"name": "absent"}}]
    body = pod(
        "waits", shell("true", volumeMounts=[{"name": "v", "mountPath": "/v"}]), once=True, volumes=volumes
    )
    await api.create(PODS, body)

    event = await until_event(api, "waits", "FailedMount")
    assert 'configmap "absent" not found' in event["message"]
    found = await api.get(PODS, "waits", "default")
    assert (phase(found), "podIP" in found["status"]) == ("Pending", False)
    await api.create(CONFIG_MAPS, config_map("absent"))

    await until(api, PODS, "waits", lambda p: phase(p) == "Succeeded")


async def test_an_optional_volume_starts_empty_and_fills_later(api):
    volumes = [{"name": "v", "configMap": {"name": "later", "optional": True}}]
    script = "until test -e /v/key; do sleep 0.05; done; cat /v/key > /dev/termination-log"
    body = pod(
        "fills", shell(script, volumeMounts=[{"name": "v", "mountPath": "/v"}]), once=True, volumes=volumes
    )
    await api.create(PODS, body)
    await until(api, PODS, "fills", lambda p: "running" in container(p)["state"])

    await api.create(CONFIG_MAPS, config_map("later", key="here"))

    ended = await until(api, PODS, "fills", lambda p: phase(p) == "Succeeded")
    assert container(ended)["state"]["terminated"]["message"] == "here"


async def test_a_pod_reaches_the_api_through_its_kubeconfig(cluster, api):
    script = "cat $KUBECONFIG > /dev/termination-log; cat $(sed -n 's/.*tokenFile: //p' $KUBECONFIG) | wc -c"
    token = {"sources": [{"serviceAccountToken": {"path": "token", "audience": "vault"}}]}
    body = pod(
        "client",
        shell(script, volumeMounts=[{"name": "t", "mountPath": "/var/run/secrets/tokens"}]),
        shell(
            "test -s /var/run/secrets/tokens/token",
            name="other",
            volumeMounts=[{"name": "t", "mountPath": "/var/run/secrets/tokens"}],
        ),
        once=True,
        automountServiceAccountToken=True,
        volumes=[{"name": "t", "projected": token}],
    )

    ended = await run_once(api, body)

    config = yaml.safe_load(ended["message"])
    assert config["clusters"][0]["cluster"]["server"] == cluster.url
    found = await api.get(PODS, "client", "default")
    assert (phase(found), container(found, "other")["state"]["terminated"]["exitCode"]) == ("Succeeded", 0)


@pytest.mark.parametrize(
    ("main", "reason", "words"),
    [
        pytest.param({"image": "nginx"}, "CreateContainerError", "has no command", id="no command"),
        pytest.param(
            {"image": "missing/it:1", "command": ["true"]}, "ErrImagePull", "missing/it:1", id="no such image"
        ),
        pytest.param(
            {"image": "x", "command": ["true"], "workingDir": "/no/such/place"},
            "CreateContainerError",
            "/no/such/place",
            id="no such directory",
        ),
    ],
)
async def test_a_container_that_cannot_start_says_what_is_wrong(api, main, reason, words):
    await api.create(PODS, pod("stuck", {"name": "main", **main}))

    found = await until(api, PODS, "stuck", waits_for(reason))

    assert words in container(found)["state"]["waiting"]["message"]
    assert words in (await until_event(api, "stuck", "Failed"))["message"]


async def test_a_program_that_is_not_there_ends_the_container_as_a_runtime_would(api):
    ended = await run_once(api, pod("typo", {"name": "main", "image": "x", "command": ["pyhton"]}, once=True))

    assert (ended["exitCode"], ended["reason"]) == (128, "StartError")
    assert '"pyhton": executable file not found in $PATH' in ended["message"]


async def test_a_pod_with_what_a_process_cannot_have_is_refused_with_advice(api):
    body = pod("odd", shell("true"), volumes=[{"name": "v", "nfs": {"server": "s", "path": "/"}}])
    await api.create(PODS, body)

    found = await until(api, PODS, "odd", lambda p: phase(p) == "Failed")

    assert found["status"]["reason"] == "UnsupportedPod"
    assert "volume 'v' has type nfs; this agent offers configMap" in found["status"]["message"]


async def test_services_of_the_namespace_are_told_unless_the_pod_does_not_want_it(api):
    spec = {"selector": {"app": "x"}, "ports": [{"name": "http", "port": 81}]}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "my-api", "namespace": "default"}}
    made = await api.create(SERVICES, service | {"spec": spec})

    seen = await environment_of(api, pod("links", python(TELL_ENVIRONMENT), once=True))
    assert seen["MY_API_SERVICE_HOST"] == made["spec"]["clusterIP"]
    assert seen["MY_API_SERVICE_PORT"] == seen["MY_API_SERVICE_PORT_HTTP"] == "81"

    alone = pod("alone", python(TELL_ENVIRONMENT), once=True)
    alone["spec"]["enableServiceLinks"] = False
    assert "MY_API_SERVICE_HOST" not in await environment_of(api, alone)


async def test_what_the_agent_adds_is_not_taken_for_a_mount_path(api, tmp_path):
    mount = {"name": "scratch", "mountPath": str(tmp_path.parents[-2])}
    mounted = pod("scratch", python(TELL_ENVIRONMENT, volumeMounts=[mount]), once=True)
    mounted["spec"]["volumes"] = [{"name": "scratch", "emptyDir": {}}]
    seen = await environment_of(api, mounted)
    assert "scratch" not in seen["HOME"]
