# backend.py
from queue import Empty, Queue
from threading import Thread

import nanoscale as ns
from nanoscale.experiments import worker
from nanoscale.experiments.machine import Slot


class Threads:
    local = True  # its runs share the cores of this machine

    def __init__(self, command=worker.NANOSCALE.command):  # `python -m nanoscale run`
        self.command = command
        self.running = {}  # folder -> process
        self.ended = Queue()

    def slots(self, device, threads, workers):  # places for runs, with their environment
        return [Slot({"OMP_NUM_THREADS": str(threads or 1)})] * (workers or 2)

    def start(self, folder, slot):  # what the run prints goes to the end of its log.txt
        env = worker.whole_environment(worker.environment_of(slot))
        process = worker.open_process(self.command, folder, env, own_session=True)
        self.running[folder] = process
        Thread(target=self.wait, args=(folder, process), daemon=True).start()

    def wait(self, folder, process):
        self.ended.put(worker.Exit(folder, process.wait()))

    def poll(self, timeout):  # the runs that have ended, after at most `timeout` seconds
        try:
            gone = self.ended.get(timeout=timeout)
        except Empty:
            return []
        del self.running[gone.folder]
        return [gone]

    def stop(self, kill=False, folders=None):  # ask them to save and leave, or end them
        for folder, process in self.running.items():
            if folders is None or folder in folders:
                process.kill() if kill else process.terminate()

    def close(self):  # let go of everything; the next start begins anew
        self.stop()
        for process in self.running.values():
            process.wait()
        self.running = {}
        self.ended = Queue()


ns.register_backend("threads", lambda output_root, options: Threads(**options))
