"""What the workflows of these tests run: Python sources of a few lines."""

# Says the wall clock of everything that it tells, then works on for 2 s; its last file is found at its end.
LIVELY = """
import json, os, time
from PIL import Image

events = os.fdopen(int(os.environ["RUNYARD_EVENTS_FD"]), "w", buffering=1)
tell = lambda **line: events.write(json.dumps(line) + "\\n")
say = lambda word: print(word, time.time())

Image.new("RGB", (64, 48), "teal").save("preview.png")
open("outputs/early.bin", "wb").write(bytes(range(256)) * 4096)
say("line")
say("progress"); tell(progress={"step": 1, "total": 2, "stage": "work", "message": "half"})
say("preview"); tell(preview="preview.png")
say("output"); tell(output="outputs/early.bin")
time.sleep(2)
os.mkdir("outputs/deep")
open("outputs/deep/late.txt", "w").write("late")
tell(progress={"step": 2, "total": 2}); tell(result={"answer": 42})
say("end")
"""

# Numbers lines until its gate is open.
COUNTING = """
import pathlib, sys, time

gate, n = pathlib.Path(sys.argv[2]), 0
while not gate.exists():
    n += 1
    print("line", n)
    time.sleep(0.04)
print("through")
"""

# Two processes in one group, both deaf to SIGTERM, that say their ids; ends at once where its gate is open.
STUBBORN = """
import os, pathlib, signal, subprocess, sys, time

if pathlib.Path(sys.argv[2]).exists():
    sys.exit(print("open"))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
                          "print('ready', flush=True); time.sleep(600)"])
print("ids", os.getpid(), child.pid)
time.sleep(600)
"""

# Ends badly after a few words.
FAILING = """
import sys

for n in range(30):
    print("step", n)
sys.exit("no more paper")
"""

# Gives its input back as its output.
COPYING = """
import json, pathlib, sys

source = pathlib.Path(json.load(open(sys.argv[1]))["document"])
pathlib.Path("outputs", "copy-of-" + source.name).write_bytes(source.read_bytes())
"""
