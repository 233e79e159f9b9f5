// SPDX-License-Identifier: Apache-2.0
/*
 * Records to lines of Chrome's trace events in JSON, which Perfetto opens. It is in C because a
 * guest makes hundreds of thousands a second. Each line is one event and ends with a comma.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "observe.h"

#define LINE 512 /* bytes that the lines of one record take at most; names have to be shorter */
#define MOST_NAME 96

/* Format `nanoseconds` as the microseconds that a trace event has. */
#define TIME "%" PRIu64 ".%03u"
#define TIME_OF(nanoseconds) (nanoseconds) / 1000, (unsigned)((nanoseconds) % 1000)

static const char *name_of(const struct pyvmm_names *names, uint64_t address)
{
	uint32_t low = 0, high = names->count;

	while (low < high) {
		uint32_t middle = (low + high) / 2;

		if (names->entries[middle].base <= address)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low || address >= names->entries[low - 1].end)
		return "nothing";
	return names->entries[low - 1].name;
}

static uint64_t since(const struct pyvmm_trace_source *source, uint64_t at)
{
	return at > source->origin ? at - source->origin : 0;
}

static int begin_exit(const struct pyvmm_trace_source *source, const struct pyvmm_record *record,
		      const char *category, char *out)
{
	uint64_t begin = since(source, record->begin), end = since(source, record->end);
	uint64_t took = end > begin ? end - begin : 0;

	return snprintf(out, LINE,
			"{\"ph\":\"X\",\"pid\":%u,\"tid\":%u,\"cat\":\"%s\",\"ts\":" TIME
			",\"dur\":" TIME,
			source->process, source->track, category, TIME_OF(begin), TIME_OF(took));
}

static int format_exit(const struct pyvmm_trace_source *source, const struct pyvmm_record *record,
		       char *out)
{
	const char *name = NULL;
	int length = begin_exit(source, record, "exit", out);

	if (record->failed) {
		return length + snprintf(out + length, LINE - length,
					 ",\"name\":\"%s\",\"args\":{\"errno\":%u}},\n",
					 record->reason == EINTR ? "kick" : "KVM_RUN failed",
					 record->reason);
	}
	if (record->reason != KVM_EXIT_MMIO) {
		if (record->reason < source->reason_count)
			name = source->reasons[record->reason];
		return length + snprintf(out + length, LINE - length,
					 ",\"name\":\"%.*s\",\"args\":{\"exit_reason\":%u}},\n",
					 MOST_NAME, name ? name : "exit", record->reason);
	}
	return length + snprintf(out + length, LINE - length,
				 ",\"name\":\"%.*s %s\",\"args\":{\"address\":\"0x%" PRIx64
				 "\",\"value\":\"0x%" PRIx64 "\",\"size\":%u,\"answered\":\"%s\"}},\n",
				 MOST_NAME, name_of(source->names, record->address),
				 record->store ? "store" : "load", record->address, record->value,
				 record->size, record->answered ? "C" : "Python");
}

/* Chains of a queue overlap, so each is an asynchronous event: a begin and an end with one id. */
static int format_chain(const struct pyvmm_trace_source *source, const struct pyvmm_record *record,
			char *out)
{
	uint64_t begin = since(source, record->begin), end = since(source, record->end);
	int length = snprintf(
		out, LINE,
		"{\"ph\":\"b\",\"pid\":%u,\"tid\":%u,\"cat\":\"queue\",\"name\":\"%.*s\",\"id\":"
		"\"%u-%" PRIu64 "\",\"ts\":" TIME ",\"args\":{\"readable\":%" PRIu64
		",\"written\":%u}},\n",
		source->process, source->track, MOST_NAME, source->name, source->track,
		record->address, TIME_OF(begin), record->value, record->size);

	return length + snprintf(out + length, LINE - length,
				 "{\"ph\":\"e\",\"pid\":%u,\"tid\":%u,\"cat\":\"queue\",\"name\":"
				 "\"%.*s\",\"id\":\"%u-%" PRIu64 "\",\"ts\":" TIME "},\n",
				 source->process, source->track, MOST_NAME, source->name,
				 source->track, record->address, TIME_OF(end));
}

static int format_interrupt(const struct pyvmm_trace_source *source,
			    const struct pyvmm_record *record, char *out)
{
	return snprintf(out, LINE,
			"{\"ph\":\"i\",\"s\":\"t\",\"pid\":%u,\"tid\":%u,\"cat\":\"interrupt\","
			"\"name\":\"%.*s\",\"ts\":" TIME ",\"args\":{\"status\":%" PRIu64 "}},\n",
			source->process, source->track, MOST_NAME, source->name,
			TIME_OF(since(source, record->begin)), record->address);
}

/*
 * Take the oldest records from the source's ring, as many as `out` has room for, and write their
 * lines there. One thread at a time. Returns the number of bytes; *taken is that of records.
 */
int64_t pyvmm_trace_format(struct pyvmm_trace_source *source, char *out, uint64_t size,
			   uint32_t *taken)
{
	struct pyvmm_trace_ring *ring = source->ring;
	uint32_t head = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE);
	uint32_t tail = ring->tail;
	uint64_t length = 0;

	*taken = 0;
	while (tail != head && size - length >= LINE) {
		const struct pyvmm_record *record = &ring->records[tail & (ring->size - 1)];
		char *line = out + length;
		int added = record->kind == PYVMM_RECORD_EXIT	 ? format_exit(source, record, line)
			    : record->kind == PYVMM_RECORD_CHAIN ? format_chain(source, record, line)
								 : format_interrupt(source, record, line);

		length += (uint64_t)added;
		tail++;
		*taken += 1;
	}
	__atomic_store_n(&ring->tail, tail, __ATOMIC_RELEASE);
	return (int64_t)length;
}
