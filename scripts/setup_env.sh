#!/usr/bin/env bash
# Makes .venv with the packages of a requirements file; does nothing when they are there already.
# Use: source scripts/setup_env.sh requirements.txt   (afterwards $PYTHON is the environment's interpreter)

requirements=$1
PYTHON=.venv/bin/python
stamp=.venv/.installed-${requirements##*/}
wanted=$(cat requirements.txt "$requirements" | sha256sum | cut -d' ' -f1)

if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    if [ ! -x "$PYTHON" ]; then
        base=
        for candidate in python3 python3.11 python3.12 python3.10; do
            if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
                base=$candidate
                break
            fi
        done
        if [ -z "$base" ]; then
            echo "setup: error: no Python 3.10, 3.11 or 3.12 found (MindSpore has wheels for these); install one" >&2
            exit 1
        fi
        echo "setup: making .venv with $("$base" --version)"
        if ! "$base" -m venv .venv; then
            rm -rf .venv
            echo "setup: error: $base cannot make virtual environments (on Debian: apt-get install python3-venv)" >&2
            exit 1
        fi
    fi
    echo "setup: installing $requirements (MindSpore alone is 800 MB; a few minutes)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$requirements" || exit 1
    echo "$wanted" > "$stamp"
fi
