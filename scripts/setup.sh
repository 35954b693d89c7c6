# Sourced by demo.sh and test.sh: makes .venv and installs the project with the given extras.
# PYTHON names another interpreter; pip's own variables (PIP_INDEX_URL, PIP_FIND_LINKS, ...) hold.

setup() {
    local extras="$1" stamp wanted
    stamp=".venv/.installed-${extras:-core}"
    wanted="$(cat pyproject.toml constraints.txt | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    echo "Installing into .venv (a few minutes the first time) ..."
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    .venv/bin/python -m pip install --disable-pip-version-check \
        --constraint constraints.txt --editable ".${extras:+[$extras]}"
    echo "$wanted" >"$stamp"
}
