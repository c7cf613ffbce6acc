"""Words of an apostrophe and what may follow it, ``'s`` and ``'re``, as ONNX text."""

import numpy as np

_RADIX = 0x110000

CONTRACTIONS = """
contractions (int64[m] code, bool[m] border, bool[m] natural, bool[m] opens, int64[s] letters, int64[p] pairs)
    => (bool[m] begin)
{
  zero = Constant<value_ints=[0]>()
  one = Constant<value_ints=[1]>()
  two = Constant<value_ints=[2]>()
  nobody = Constant<value_ints=[-1]>()
  radix = Constant<value_ints=[1114112]>()
  size = Shape(code)
  far = Add(size, one)
  farther = Add(size, two)
  yes = Equal(zero, zero)
  no = Not(yes)
  no_two = Concat<axis=0>(no, no)
  no_three = Concat<axis=0>(no_two, no)

  joined = Not(border)
  joined_padded = Concat<axis=0>(joined, no_two)
  joined1 = Slice(joined_padded, one, far)
  joined2 = Slice(joined_padded, two, farther)
  padded = Concat<axis=0>(code, nobody, nobody)
  code1 = Slice(padded, one, far)
  code2 = Slice(padded, two, farther)
  column1 = Unsqueeze(code1, one)
  letter_each = Equal(column1, letters)
  letter_count = Cast<to=7>(letter_each)
  some_letter = ReduceMax<keepdims=0>(letter_count, one)
  has_letter = Cast<to=9>(some_letter)
  goes_on = And(opens, joined1)
  short = And(goes_on, has_letter)
  high = Mul(code1, radix)
  pair = Add(high, code2)
  column2 = Unsqueeze(pair, one)
  pair_each = Equal(column2, pairs)
  pair_count = Cast<to=7>(pair_each)
  some_pair = ReduceMax<keepdims=0>(pair_count, one)
  has_pair = Cast<to=9>(some_pair)
  goes_farther = And(goes_on, joined2)
  long = And(goes_farther, has_pair)

  either = Or(short, long)
  either_padded = Concat<axis=0>(no, either)
  claimed = Slice(either_padded, zero, size)
  unclaimed = Not(claimed)
  loose = And(natural, unclaimed)
  short_padded = Concat<axis=0>(no_two, short)
  long_padded = Concat<axis=0>(no_three, long)
  short_end = Slice(short_padded, zero, size)
  long_end = Slice(long_padded, zero, size)
  ended = Or(short_end, long_end)
  begin = Or(loose, ended)
}
"""
"""What begins behind an apostrophe and one of ``letters`` or ``pairs`` (of two code points, one number)."""


def contractions(letters: str, pairs: str) -> tuple[np.ndarray, np.ndarray]:
    """The tables of :data:`CONTRACTIONS`, int64: ``letters`` side by side, ``pairs`` apart."""
    both = [ord(pair[0]) * _RADIX + ord(pair[1]) for pair in pairs.split()]
    return np.array([ord(letter) for letter in letters], np.int64), np.array(both, np.int64)


CASED = contractions("stmd", "re ve ll")
CASELESS = contractions("stmdSTMDſ", "re rE Re RE ve vE Ve VE ll lL Ll LL")
"""In any case, the long s among them: regular expressions fold it to s."""
