"""What this machine's KVM answers to a profile."""

from __future__ import annotations

import platform

import pytest

from vmm.coherence.capability import FlagAnswer
from vmm.uapi.profile import UapiProfile
from vmm.uapi.questions import Answers

pytestmark = pytest.mark.kvm


def test_each_part_of_a_profile_is_asked_about() -> None:
    profile = UapiProfile.of(
        {
            "capabilities": {"KVM_CAP_USER_MEMORY": 3, "NONE": 9999},
            "memory_flags": {"LOG": 1, "NONE": 1 << 14},
            "ioctls": {
                "KVM_GET_API_VERSION": {"of": "system", "number": 0},
                "NONE": {"of": "vm", "number": 0xFE},
            },
        },
        "profile",
    )
    answers = Answers.of(profile)
    assert answers.capabilities == {"KVM_CAP_USER_MEMORY": (1, 1), "NONE": (0, 0)}
    assert set(answers.memory_flags["LOG"].values()) == {FlagAnswer.ACCEPTED}
    assert set(answers.memory_flags["NONE"].values()) == {FlagAnswer.UNSUPPORTED}
    assert answers.ioctls["KVM_GET_API_VERSION"] == ("0", True)
    unknown = ("EINVAL", None) if platform.machine() == "aarch64" else ("ENOTTY", False)
    assert answers.ioctls["NONE"] == unknown
    assert [line.split()[0] for line in answers.lines()] == [
        *("KVM_CAP_USER_MEMORY", "NONE", "LOG", "NONE", "KVM_GET_API_VERSION", "NONE")
    ]
