"""Which workload a process belongs to, for the cgroups that systemd, Docker, Podman and Kubernetes make."""

import os
from pathlib import Path

import pytest

from exporter.core.workload import cgroup_of, workload_of

ID = "0123456789ab" + "cd" * 26
POD = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod01234567_89ab_cdef_0123_456789abcdef.slice"


@pytest.mark.parametrize(
    ("cgroup", "workload"),
    [
        ("0::/system.slice/vllm.service", "vllm.service"),
        ("0::/system.slice/system-vllm.slice/vllm@qwen3-8b.service", "vllm@qwen3-8b.service"),
        (r"0::/system.slice/llama\x2dserver.service/worker", "llama-server.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/ollama.service", "ollama.service"),
        ("9:name=systemd:/system.slice/tgi.service\n4:memory:/system.slice\n0::/", "tgi.service"),
        (f"0::/system.slice/docker-{ID}.scope", "0123456789ab"),
        (f"0::/docker/{ID}", "0123456789ab"),
        (f"0::/machine.slice/libpod-{ID}.scope/container", "0123456789ab"),
        (f"0::/system.slice/vllm.service/libpod-payload-{ID}", "vllm.service"),
        (f"0::/{POD}/cri-containerd-{ID}.scope", "0123456789ab"),
        (f"0::/system.slice/k3s.service/{POD}/{ID}", "0123456789ab"),
        ("0::/user.slice/user-1000.slice/session-3.scope", "sglang"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/tmux-spawn-1.scope", "sglang"),
        ("9:name=systemd:/\n4:memory:/box\n0::/", "sglang"),
        ("nonsense", "sglang"),
    ],
)
def test_a_workload_is_a_unit_a_container_or_a_process_of_its_own(cgroup: str, workload: str, tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(f"{cgroup}\n")
    (tmp_path / "7" / "comm").write_text("sglang\n")
    assert workload_of(7, tmp_path) == workload


def test_the_cgroup_is_the_unit_s_own_not_one_within_it(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text("0::/system.slice/vllm.service/worker/a\n")
    assert cgroup_of(7, tmp_path) == ("vllm.service", "system.slice/vllm.service")


def test_a_process_that_is_gone_has_no_workload(tmp_path: Path) -> None:
    assert workload_of(7, tmp_path) is None


def test_this_process_has_one() -> None:
    assert workload_of(os.getpid())
