#!/bin/sh
# Make the virtual environment VENV with PYTHON, or bring it up to date: venv.sh VENV PYTHON.
# A second run at the same time waits for the first, and then finds everything done.
set -eu
venv=$1
python=$2
ready=$venv/.ready

if command -v flock >/dev/null 2>&1; then
    exec 9>"$(dirname "$venv")/.venv-lock"
    flock 9
    if [ "$ready" -nt tools/requirements.txt ] && [ "$ready" -nt pyproject.toml ]; then
        exit 0
    fi
fi
echo "Python packages into $venv ..."
"$python" -m venv "$venv"
# Twice quiet: its warnings (one source package has no pyproject.toml) are nothing to act on.
"$venv/bin/pip" install -qq --require-hashes -r tools/requirements.txt
"$venv/bin/pip" install -qq --no-deps --no-build-isolation -e .
touch "$ready"
