/* Claims and completes items through ceiling.lua, on one connection, as quickly as a client can.
 *
 *   ceiling PORT ITEMS BATCH     prints items per second
 *
 * With a batch of 1 it claims, waits, completes, waits: two round trips an item. With more, completing a batch and
 * claiming the next one are written together: one round trip a batch. Every id and token goes back as it came. */
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define KEYS "5", "i:", "waiting", "leases", "done", "events"
#define NOW_MS "1700000000000"

enum { CLAIM_WORDS = 12, COMPLETE_WORDS = 9, WORDS_AN_ITEM = 3, TOKEN_BYTES = 24 };
static const char *RESULT = "{\"ok\":true,\"n\":1}";

static void fail(const char *what, const char *why) {
  fprintf(stderr, "ceiling: %s: %s\n", what, why);
  exit(1);
}

static double now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static redisReply *read_reply(redisContext *redis, const char *what, int type) {
  redisReply *reply = NULL;
  if (redisGetReply(redis, (void **)&reply) != REDIS_OK) fail(what, redis->errstr);
  if (reply->type != type) fail(what, reply->type == REDIS_REPLY_ERROR ? reply->str : "an answer of another type");
  return reply;
}

static void send_claim(redisContext *redis, const char *batch) {
  const char *words[CLAIM_WORDS] = {"FCALL", "ceiling_claim", KEYS, batch, "c", NOW_MS, "30000"};
  redisAppendCommandArgv(redis, CLAIM_WORDS, words, NULL);
}

static void send_complete(redisContext *redis, const redisReply *claimed) {
  size_t most = COMPLETE_WORDS + WORDS_AN_ITEM * claimed->elements, n = COMPLETE_WORDS;
  const char *head[COMPLETE_WORDS] = {"FCALL", "ceiling_complete", KEYS, NOW_MS};
  const char **words = malloc(most * sizeof *words);
  char *tokens = malloc(claimed->elements * TOKEN_BYTES);
  if (!words || !tokens) fail("complete", "no memory");
  memcpy(words, head, sizeof head);
  for (size_t i = 0; i < claimed->elements; i++) {
    redisReply **item = claimed->element[i]->element;
    char *token = tokens + i * TOKEN_BYTES;
    snprintf(token, TOKEN_BYTES, "%lld", item[1]->integer);
    words[n++] = item[0]->str;
    words[n++] = token;
    words[n++] = RESULT;
  }
  redisAppendCommandArgv(redis, (int)n, words, NULL);
  free(tokens);
  free(words);
}

int main(int argc, char **argv) {
  if (argc != 4) fail("arguments", "needed PORT ITEMS BATCH");
  long items = atol(argv[2]), done = 0;
  int together = atoi(argv[3]) > 1;
  redisContext *redis = redisConnect("127.0.0.1", atoi(argv[1]));
  if (!redis || redis->err) fail("connect", redis ? redis->errstr : "no memory");

  double began = now_s();
  send_claim(redis, argv[3]);
  redisReply *claimed = read_reply(redis, "claim", REDIS_REPLY_ARRAY);
  while (claimed->elements > 0) {
    size_t batch = claimed->elements;
    send_complete(redis, claimed);
    if (together) send_claim(redis, argv[3]);
    redisReply *completed = read_reply(redis, "complete", REDIS_REPLY_INTEGER);
    if (completed->integer != (long long)batch) fail("complete", "refused");
    freeReplyObject(completed);
    freeReplyObject(claimed);
    done += (long)batch;
    if (!together) send_claim(redis, argv[3]);
    claimed = read_reply(redis, "claim", REDIS_REPLY_ARRAY);
  }
  double seconds = now_s() - began;
  freeReplyObject(claimed);
  redisFree(redis);
  if (done != items) fail("items", "another number than was filled in");
  printf("%.1f\n", (double)done / seconds);
  return 0;
}
