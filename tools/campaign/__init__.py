"""The reliability campaign: kills, fuzzed commands, damaged files and full disks, counted by verdict.

    python -m tools.campaign kills --count 500 --workers 2 --out kills.json
    python -m tools.campaign commands --count 3000
    python -m tools.campaign files --count 3000
    python -m tools.campaign disk --count 50
    python -m tools.campaign all                       the counts of docs/reliability.md, in about an hour on two cores
    python -m tools.campaign commands --only 17        one case again, as after a failure

Every case is decided by the seed and its index. Commands run in forks of a process that has imported torch but started
no thread, which saves the seconds of the import; a fifth of the kills are of processes of their own. Linux only.

attempts.py   commands in forks, in processes of their own, in two processes
folders.py    what is compared, and what has to hold after a kill
prepared.py   the folder with images, recipe and run that all cases start from
kills.py, commands.py, files.py, disk.py           the four parts
values.py, damage.py                               values and files that nobody expects
watch.py      what a command opens, connects to and starts, and the verdict on it
results.py    counts and tables      sabotage.py   faults that the campaign must find
"""
