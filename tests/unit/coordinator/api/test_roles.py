from __future__ import annotations

import pytest

from coordinator.services.permissions import ROLES, Action, Principal, Role, is_permitted

READING = (Action.READ_ME, Action.READ_SITES, Action.READ_RUNS, Action.READ_RELEASES)


def user(*roles: Role) -> Principal:
    return Principal(user_id="u", name="n", roles=frozenset(roles), token_id="t")


def test_every_action_is_listed() -> None:
    assert set(ROLES) == set(Action)


@pytest.mark.parametrize("action", list(Action))
def test_admin_may_do_everything_but_release_and_nobody_nothing(action: Action) -> None:
    # Who makes the accounts of those who sign is not one of them.
    is_signing = action in {Action.APPROVE_RELEASE, Action.REVIEW_RELEASE}
    assert is_permitted(user(Role.ADMIN), action) is not is_signing
    assert not is_permitted(user(), action)


@pytest.mark.parametrize(
    ("role", "permitted"),
    [
        (
            Role.AUDITOR,
            {
                *READING,
                Action.READ_AUDIT,
                Action.EXPORT_AUDIT,
                Action.READ_SUMS,
                Action.READ_METRICS,
                Action.REVIEW_RELEASE,
                Action.DOWNLOAD_RELEASE,
                Action.OWN_PASSPHRASE,
                Action.OWN_TOKENS,
            },
        ),
        (
            Role.PRIVACY_OFFICER,
            {
                *READING,
                Action.READ_AUDIT,
                Action.EXPORT_AUDIT,
                Action.READ_SUMS,
                Action.SUSPEND_SITE,
                Action.PAUSE_RUN,
                Action.REVIEW_RELEASE,
                Action.APPROVE_RELEASE,
                Action.WITHDRAW_RELEASE,
                Action.DOWNLOAD_RELEASE,
                Action.OWN_PASSPHRASE,
                Action.OWN_TOKENS,
            },
        ),
        (
            Role.STUDY_LEAD,
            {
                *READING,
                Action.PUT_BLOB,
                Action.CREATE_RUN,
                Action.START_RUN,
                Action.PAUSE_RUN,
                Action.RESUME_RUN,
                Action.CANCEL_RUN,
                Action.REVIEW_RELEASE,
                Action.APPROVE_RELEASE,
                Action.WITHDRAW_RELEASE,
                Action.DOWNLOAD_RELEASE,
                Action.OWN_PASSPHRASE,
                Action.OWN_TOKENS,
            },
        ),
    ],
)
def test_role_permits_exactly_its_actions(role: Role, permitted: set[Action]) -> None:
    assert {action for action in Action if is_permitted(user(role), action)} == permitted


def test_roles_add_up() -> None:
    both = user(Role.AUDITOR, Role.STUDY_LEAD)
    assert is_permitted(both, Action.READ_AUDIT)
    assert is_permitted(both, Action.CREATE_RUN)
    assert not is_permitted(both, Action.REVOKE_SITE)
