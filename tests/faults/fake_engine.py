"""An engine that trains nothing: the real lock, log, socket, events and checkpoints around a random walk. No torch.

``python fake_engine.py RUN_DIR JSON`` with the keys: steps, step_s, save_every, keep, payload_bytes,
and at: {step: fault}.
"""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

from engine import checkpoints
from engine.control import Cancelled, Control
from engine.events import EventLog
from engine.job import claim_output, hold_lock
from workbench.protocol import Checkpoint, Ended, Metrics, Paused, Phase, Pong, Progress, Started, Unpaused


def fault(kind):
    """Cause a fault for real, inside this process."""
    sys.stderr.write(f"about to {kind}\n")
    sys.stderr.flush()
    if kind == "segfault":
        ctypes.string_at(0)
    elif kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "abort":
        os.abort()
    elif kind == "exit":
        os._exit(3)
    elif kind == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
        time.sleep(600)
    elif kind == "spin":  # a long step that a cancel can tear
        until = time.monotonic() + 600
        while time.monotonic() < until:
            time.sleep(0.005)


class Walk:
    """A run whose every number depends on all steps before it."""

    def __init__(self, run_dir, plan):
        self.dir, self.plan = run_dir, plan
        self.events, self.control = EventLog(run_dir), Control()
        self.control.status = lambda: Pong(seq=self.events.seq, step=self.step, phase="training")
        self.step, self.state = 0, 12345
        checkpoints.sweep(run_dir / "checkpoints")
        found = checkpoints.newest_good(run_dir / "checkpoints")
        if found.path:
            kept = json.loads((found.path / "state.json").read_text())
            self.step, self.state = kept["step"], kept["state"]
        self.resumed_from = self.step if found.path else -1

    def save(self):
        def write(folder):
            (folder / "state.json").write_text(json.dumps({"step": self.step, "state": self.state}))
            with (folder / "adapter_model.safetensors").open("wb") as out:
                for _ in range(max(1, self.plan.get("payload_bytes", 1000) // 1000)):
                    out.write(os.urandom(1000))

        where = self.dir / "checkpoints" / str(self.step)
        if not checkpoints.is_sound(where):
            about = {"kind": "checkpoint", "run_id": self.dir.name, "method": "sft", "step": self.step}
            size = checkpoints.write_folder(where, write, **about)
            checkpoints.prune(self.dir / "checkpoints", self.plan.get("keep", 2))
            self.events.emit(Checkpoint(step=self.step, path=f"checkpoints/{self.step}", bytes=size))

    def run(self):
        steps = self.plan.get("steps", 20)
        faults = {int(step): kind for step, kind in self.plan.get("at", {}).items()}
        self.control.catch_signals()
        self.control.listen(self.dir)
        self.control.heard = lambda command: self.events.emit(Phase(name=type(command).__name__.lower()))
        self.events.emit(Started(pid=os.getpid(), device="fake", resumed_from=self.resumed_from, total_steps=steps))
        while self.step < steps:
            if self.step + 1 in faults:
                fault(faults[self.step + 1])
            self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
            self.step += 1
            time.sleep(self.plan.get("step_s", 0.01))
            with self.control.whole():
                self.events.emit(Metrics(step=self.step, values={"loss": self.state / 2**64}))
                self.events.emit(Progress(step=self.step, total_steps=steps))
            if self.control.take_save() or self.step % self.plan.get("save_every", 5) == 0:
                self.save()
            if self.control.paused:
                self.events.emit(Paused(step=self.step))
                while self.control.paused and not self.control.stop:
                    self.control.changed.wait(0.05)
                    self.control.check_cancelled()
                self.events.emit(Unpaused(step=self.step))
            if self.control.stop:
                if self.control.stop.save:
                    self.save()
                return "stopped"
        (self.dir / "final").mkdir(exist_ok=True)
        checkpoints.write_folder(
            self.dir / "final",
            lambda folder: (folder / "adapter_config.json").write_text("{}"),
            kind="final",
            run_id=self.dir.name,
            method="sft",
            step=self.step,
        )
        return "done"


def main():
    run_dir, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
    lock = hold_lock(run_dir)
    claim_output(run_dir / "engine.log")
    walk = Walk(run_dir, plan)
    try:
        state = walk.run()
    except Cancelled:
        state = "stopped"
    walk.control.ending = True
    walk.events.emit(Ended(state=state, step=walk.step, message=f"{state} at {walk.step}"))
    walk.control.close()
    del lock
    os._exit(0)


main()
