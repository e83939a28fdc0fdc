"""Several processes at one run: what they share, and what process 0 alone does.

Every process runs the same program on its own devices, and JAX's collectives join them. Process 0,
the leader, alone reads and writes run folders; the others learn from it what they need, so that no
file system has to be shared. In a single process, as it is without `--distributed`, every function
here does the obvious.
"""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed as _runtime  # For the key-value store; it has no public name.
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.shell.errors import RunFailed
from ntksap_jax import sharding

T = TypeVar("T")

LEADER = 0
"""The process that reads and writes run folders."""

PATIENCE_SECONDS = 1800
"""How long a process waits for what the leader has to say."""

_numbers = itertools.count()
_stop_calls = itertools.count(1)


def is_joined() -> bool:
    """Says whether this is one of several processes."""
    return _runtime.global_state.client is not None


def is_leader() -> bool:
    """Says whether this process is the one that reads and writes run folders; if alone, it is."""
    return process_id() == LEADER


def process_id() -> int:
    """Returns the number of this process; 0 if it is alone."""
    return _runtime.global_state.process_id


def me() -> str:
    """Names this process, for messages."""
    return f"process {process_id()} of {_runtime.global_state.num_processes}"


def store() -> Any:
    """Returns the client of JAX's store of keys and values, by which processes exchange texts."""
    return _runtime.global_state.client


def meet() -> None:
    """Sums over all devices: connects them all at a time when none computes while others wait.

    Raises:
        RunFailed: the processes have not equally many devices.
    """
    if not is_joined():
        return
    local, everywhere = jax.local_device_count(), jax.device_count()
    if local * jax.process_count() != everywhere:
        raise RunFailed(
            f"{me()} on {socket.gethostname()} has {local} of {everywhere} devices; all processes "
            "must have equally many"
        )
    jnp.sum(shard_batch(np.ones(local), data_mesh())).block_until_ready()


# -- What the leader knows -----------------------------------------------------------------------


def from_leader(make: Callable[[], T]) -> T:
    """Returns what `make()` returns in the leader, where alone it is called: of what JSON can hold.

    All processes must call this, in the same order.
    """
    if not is_joined():
        return make()
    key = f"ntksap_jax/{next(_numbers)}"
    if is_leader():
        value = make()
        store().key_value_set(key, json.dumps(value))
        return value
    try:
        return json.loads(store().blocking_key_value_get(key, 1000 * PATIENCE_SECONDS))
    except jax.errors.JaxRuntimeError as error:
        raise RunFailed(
            f"{me()} heard nothing of process 0 for {PATIENCE_SECONDS} s. Look at its output"
        ) from error


def arrays_from_leader(make: Callable[[], Any], like: Any) -> Any:
    """Returns the pytree of arrays that `make()` returns in the leader, where alone it is called.

    Args:
        make: returns arrays of the shapes and types of `like`.
        like: pytree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
        Arrays on a device of this process, the same bits in all; without others, what `make` made.
    """
    if not is_joined():
        return make()
    leaves, structure = jax.tree.flatten(like)
    if is_leader():
        made = (np.asarray(local(leaf)) for leaf in jax.tree.leaves(make()))
        sent = [np.ascontiguousarray(leaf).reshape(-1).view(np.uint8) for leaf in made]
    else:
        sent = [np.zeros(leaf.size * leaf.dtype.itemsize, np.uint8) for leaf in leaves]
    # As bytes, because they are summed with the zeros of the others: -0.0 + 0.0 is not -0.0.
    received = multihost_utils.broadcast_one_to_all(sent)
    arrays = [
        jnp.asarray(np.asarray(data).view(leaf.dtype).reshape(leaf.shape))
        for data, leaf in zip(received, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, arrays)


def check_same(facts: Callable[[], Mapping[str, str]]) -> None:
    """Makes sure that something is the same in all processes.

    Args:
        facts: returns name to value; not called if there are no other processes.

    Raises:
        RunFailed: a value is not that of process 0.
    """
    if not is_joined():
        return
    ours = dict(facts())
    for name, expected in from_leader(lambda: ours).items():
        if ours[name] != expected:
            raise RunFailed(
                f"{me()} on {socket.gethostname()} has another {name} than process 0: "
                f"{ours[name]}, not {expected}"
            )


# -- Preemption ----------------------------------------------------------------------------------


def stop_agreed() -> bool:
    """Says whether to stop here because some process got SIGTERM; all processes say the same.

    JAX catches the signal and agrees on the next call, counted in each process, that none has made
    yet. So all processes must call this equally often.
    """
    return multihost_utils.reached_preemption_sync_point(next(_stop_calls))


# -- Arrays --------------------------------------------------------------------------------------


def data_mesh() -> Mesh:
    """Makes the mesh of all devices, those of a process next to each other."""
    return sharding.data_mesh(sorted(jax.devices(), key=lambda device: device.process_index))


def part() -> tuple[int, int]:
    """Returns which part of every batch this process has, and of how many: it reads no other."""
    return jax.process_index(), jax.process_count()


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Makes batches on all devices of the parts that the processes have, split along axis 0."""
    if not is_joined():
        return sharding.shard_batch(tree, mesh)
    placement = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(placement, x), tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every array, the same in all processes, on every device of the mesh."""
    if not is_joined():
        return sharding.replicate(tree, mesh)
    placement = NamedSharding(mesh, PartitionSpec())

    def put(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, placement, lambda index: x[index])

    return jax.tree.map(put, tree)


def local(tree: Any) -> Any:
    """Returns this process's copy of replicated arrays; without other processes, the arrays."""
    if not is_joined():
        return tree

    def copy(x: Any) -> Any:
        is_whole = not isinstance(x, jax.Array) or x.is_fully_addressable
        return x if is_whole else x.addressable_data(0)

    return jax.tree.map(copy, tree)


def gathered(tree: Any) -> Any:
    """Returns arrays that are split over the processes as NumPy arrays, whole in each."""
    return multihost_utils.process_allgather(tree, tiled=True)
