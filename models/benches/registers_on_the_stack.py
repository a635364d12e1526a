"""Finds inner loops of products whose vector registers go through the stack.

    cargo bench --package passerelle-models --bench ops --no-run            # prints where BINARY is
    objdump --disassemble --no-show-raw-insn -M intel BINARY | python models/benches/registers_on_the_stack.py [all]

A compiler that reads early what later products need can run out of registers and keep running sums on the stack: nothing fails, and a
product may take twice as long. Of the bodies for AVX2 and AVX-512, of each innermost loop that multiplies vectors at least four times, it
prints how many instructions it has, how many of them multiply, and how many read or write a whole vector on the stack; with `all`
also of loops where none does. Whether it matters, a measurement must tell: a loop that waits for memory, or that scales
what another one has summed, may have some there at no cost.
"""

import re
import sys

FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
INSTRUCTION = re.compile(r"^\s+([0-9a-f]+):\s+(\S.*)$")
JUMP = re.compile(r"^j\w+\s+([0-9a-f]+)\b")
MULTIPLIES = re.compile(r"^(vfn?m(add|sub)\d+ps|vpmaddwd|vpmaddubsw|vpdp\w+|vdpbf16ps)\s.*[yz]mm")
ON_THE_STACK = re.compile(r"^v.*[YZ]MMWORD PTR \[rsp")
SETS = ("avx512_bf16", "avx512", "avx2")
# Loops of fewer have registers to spare.
FEWEST_PRODUCTS = 4


def functions(lines):
    """Names, and instructions by address."""
    name, instructions = None, []
    for line in lines:
        if begins := FUNCTION.match(line):
            yield name, instructions
            name, instructions = begins[1], []
        elif instruction := INSTRUCTION.match(line):
            instructions.append((int(instruction[1], 16), instruction[2]))
    yield name, instructions


def inner_loops(instructions):
    """First and last index of each loop that has no other one in it."""
    index_of = {address: index for index, (address, _) in enumerate(instructions)}
    loops = set()
    for index, (_, text) in enumerate(instructions):
        target = (jump := JUMP.match(text)) and index_of.get(int(jump[1], 16))
        if target is not None and target <= index:
            loops.add((target, index))
    is_within = lambda inner, outer: inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]
    return sorted(loop for loop in loops if not any(is_within(other, loop) for other in loops))


def main():
    if sys.argv[1:] not in ([], ["all"]):
        sys.exit(f"the only argument is `all`, not {' '.join(sys.argv[1:])}")
    shows_all = sys.argv[1:] == ["all"]
    num_loops, is_intels_syntax = 0, False
    print(f"{'set':<12} {'loop at':>9} {'instructions':>13} {'products':>9} {'on the stack':>13}  symbol ends with")
    for name, instructions in functions(sys.stdin):
        instruction_set = next((known for known in SETS if f"3cpu{len(known)}{known}" in (name or "")), None)
        if not instruction_set:
            continue
        is_intels_syntax = is_intels_syntax or any(" PTR [" in text for _, text in instructions)
        for first, last in inner_loops(instructions):
            texts = [text for _, text in instructions[first : last + 1]]
            products = sum(bool(MULTIPLIES.match(text)) for text in texts)
            moved = sum(bool(ON_THE_STACK.match(text)) for text in texts)
            if products < FEWEST_PRODUCTS:
                continue
            num_loops += 1
            if moved or shows_all:
                address = f"{instructions[first][0]:x}"
                print(f"{instruction_set:<12} {address:>9} {len(texts):>13} {products:>9} {moved:>13}  {name[-20:]}")
    if not num_loops or not is_intels_syntax:
        sys.exit("no loop of a product: is this the disassembly of a build with symbols, in Intel's syntax, mangled?")
    print(f"{num_loops} loops looked at")


if __name__ == "__main__":
    main()
