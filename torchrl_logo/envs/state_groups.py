"""What the features of a state are, so that errors can be told apart by them."""

from __future__ import annotations

__all__ = ["state_groups"]

_ENTITY = {"position": (0, 1), "velocity": (2, 3), "rotation": (4,), "angular velocity": (5,)}

# Of gymnasium's observations without the root's place: joint positions, then velocities. Ant's
# are followed by contact forces.
_POSITIONS = {"halfcheetah": 8, "hopper": 5, "walker2d": 8, "swimmer": None, "ant": 13}
_VELOCITIES = {"halfcheetah": 9, "hopper": 6, "walker2d": 9, "swimmer": None, "ant": 14}


def state_groups(task: str | None, state_size: int) -> dict[str, list[int]]:
    """The features of a task's state by what they are.

    Args:
        task (str, optional): name of the task, as :func:`make_env` takes it.
        state_size (int): features of the state.

    Returns:
        Indices by name: of VMAS ``"position"``, ``"velocity"``, ``"rotation"`` and ``"angular
        velocity"`` of the entities; of MaMuJoCo ``"position"``, ``"velocity"`` and, for what
        follows them, ``"contact force"``; of other tasks all under ``"state"``. Every feature is
        in one group.

    Examples:
        >>> state_groups("vmas/balance", 12)["velocity"]
        [2, 3, 8, 9]
        >>> state_groups(None, 3)
        {'state': [0, 1, 2]}
    """
    simulator, _, scenario = (task or "").partition("/")
    if simulator == "vmas" and state_size % 6 == 0:
        return {
            name: [first + i for first in range(0, state_size, 6) for i in places]
            for name, places in _ENTITY.items()
        }
    robot = scenario.split("_")[0]
    if simulator == "mamujoco" and robot in _POSITIONS:
        # A swimmer of n joints: n angles beside the body's, and two velocities more.
        positions = _POSITIONS[robot] or (state_size - 2) // 2
        velocities = _VELOCITIES[robot] or state_size - positions
        groups = {
            "position": list(range(positions)),
            "velocity": list(range(positions, positions + velocities)),
            "contact force": list(range(positions + velocities, state_size)),
        }
        return {name: places for name, places in groups.items() if places}
    return {"state": list(range(state_size))}
