from __future__ import annotations

import pytest

from avarc_cli.errors import UsageError
from avarc_cli.work.shards import Shard


@pytest.mark.parametrize(("count", "of"), [(6, 1), (6, 4), (1, 3), (1024, 7)])
def test_shards_divide_the_chunks_evenly(count, of):
    shards = [Shard(number, of).chunks(count) for number in range(1, of + 1)]
    assert [chunk for shard in shards for chunk in shard] == list(range(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "1/0", "-1/2", "a/b", "1/2/3", "1.0/2"])
def test_a_shard_that_does_not_exist_is_a_usage_error(text):
    with pytest.raises(UsageError, match="shard"):
        Shard.parse(text)
